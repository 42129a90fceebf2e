"""Finding a replica for a request, and another if that fails, and waiting if there is none.

Shared by all lanes. When no replica is in rotation but one is coming, a request waits for it rather than
fail at once: for a while, and so many at most.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from loadbalancer.errors import NoReplicaError, UpstreamClosedError, UpstreamError, UpstreamRefusedError
from loadbalancer.proxy.retry import RetryBudget
from loadbalancer.routing.snapshot import SnapshotSource
from loadbalancer.routing.upstream import Upstream

SETTLES_WITHIN = 0.5
"""Seconds in which a replica that breaks its connections because it has died is known to be dead."""


class Router:
    """Finds replicas for requests.

    Args:
        source: Publishes the snapshots that requests go by.
        budget: Says how many requests may be repeated.
        queue_timeout: Seconds a request may wait for a replica in all; 0: not at all.
        queue_size: Requests that may wait at once.
    """

    def __init__(
        self, source: SnapshotSource, budget: RetryBudget, queue_timeout: float, queue_size: int
    ) -> None:
        self._source = source
        self._budget = budget
        self._timeout = queue_timeout
        self._size = queue_size
        self._waiting = 0

    async def carry(
        self,
        key: str,
        attempt: Callable[[Upstream], Awaitable[None]],
        may_repeat: Callable[[UpstreamError], bool],
    ) -> None:
        """Have a request done by a replica; if that fails, perhaps by another.

        Who broke the connection may have begun with the request, so that this is tried once more at
        most; connections that are refused cost nothing but the time.

        Args:
            key: What the request is hashed on.
            attempt: Has one replica do it.
            may_repeat: Whether it can be done again after an error.

        Raises:
            NoReplicaError: There is no replica, and none came in time.
            UpstreamError: It failed, and could not be repeated.
        """
        self._budget.request()
        route = _Route(key)
        upstream = await self._find(route)
        while True:
            upstream.acquire()
            try:
                return await attempt(upstream)
            except UpstreamError as error:
                _note(upstream, error)
                closed = isinstance(error, UpstreamClosedError)
                if (closed and route.closed) or not may_repeat(error) or not self._budget.withdraw():
                    raise
                route.closed |= closed
                failure = error
            finally:
                upstream.release()
            route.tried.add(upstream)
            try:
                upstream = await self._find(route)
            except NoReplicaError:
                raise failure from None

    async def _find(self, route: "_Route") -> Upstream:
        """Find a replica that the request has not failed on, at once if there is one."""
        upstream = self._source.snapshot.pick(route.key, route.tried)
        if upstream is not None:
            return upstream
        if self._waiting >= self._size:
            raise NoReplicaError(f"no replica is in rotation, and {self._waiting} requests wait for one")
        self._waiting += 1
        try:
            async with asyncio.timeout_at(route.deadline(self._timeout)):
                while upstream is None:
                    await self._next_snapshot()
                    upstream = self._source.snapshot.pick(route.key, route.tried)
            return upstream
        except TimeoutError:
            raise NoReplicaError("no replica is in rotation: try again in a moment") from None
        finally:
            self._waiting -= 1

    async def _next_snapshot(self) -> None:
        if not self._source.hopeful:
            raise NoReplicaError("no replica is in rotation, and none is to come")
        # Where the request has failed on all that are in rotation, they may be as well as ever, or about
        # to be found dead, which does not take long.
        patience = SETTLES_WITHIN if self._source.snapshot.upstreams else None
        async with asyncio.timeout(patience):
            await self._source.next_snapshot()


@dataclass(slots=True)
class _Route:
    """One request's way so far."""

    key: str
    tried: set[Upstream] = field(default_factory=set)
    closed: bool = False
    """Whether a replica has broken the connection that it had accepted."""
    waits_until: float | None = None

    def deadline(self, patience: float) -> float:
        """Until when it waits: what it may wait in all begins when it first has to."""
        if self.waits_until is None:
            self.waits_until = asyncio.get_running_loop().time() + patience
        return self.waits_until


def _note(upstream: Upstream, error: UpstreamError) -> None:
    if isinstance(error, UpstreamRefusedError):
        upstream.refused()
    else:
        upstream.failed()
