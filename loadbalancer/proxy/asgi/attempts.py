"""Carrying one request: attempts at one replica after the other, until one answers or none is left."""

from collections.abc import Awaitable, Callable

from loadbalancer.errors import UpstreamError
from loadbalancer.proxy.router import Route, Router
from loadbalancer.routing.upstream import Upstream


async def carry(
    router: Router,
    key: str,
    attempt: Callable[[Upstream, bool], Awaitable[None]],
    may_repeat: Callable[[UpstreamError], bool],
) -> None:
    """Have a request done by a replica; if that fails, perhaps by another.

    A replica that broke the connection may have begun with the request, so that this is tried once more
    at most; connections that are refused cost nothing but the time.

    Args:
        router: Finds the replicas.
        key: What the request is hashed on.
        attempt: Has one replica do it; told whether that must be on a new connection.
        may_repeat: Whether it can be done again after an error.

    Raises:
        NoReplicaError: There is no replica, and none came in time.
        UpstreamError: It failed, and could not be repeated.
    """
    route = Route(key)
    upstream = router.first(key) or await router.wait(route)
    while True:
        upstream.acquire()
        try:
            return await attempt(upstream, route.fresh)
        except UpstreamError as error:
            if not router.may_go_on(route, upstream, error, may_repeat(error)):
                raise
            failure = error
        finally:
            upstream.release()
        upstream = router.pick(route) or await router.wait(route, failure)
