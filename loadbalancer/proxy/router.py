"""Finding a replica for a request, and another if that fails, and waiting if there is none.

Shared by all lanes. When no replica is in rotation but one is coming, a request waits for it rather than
fail at once: for a while, and so many at most.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from loadbalancer.errors import (
    NoReplicaError,
    UpstreamClosedError,
    UpstreamError,
    UpstreamGarbledError,
    UpstreamLeftError,
    UpstreamRefusedError,
    UpstreamStaleError,
)
from loadbalancer.proxy.retry import Monotonic, RetryBudget
from loadbalancer.routing.snapshot import SnapshotSource
from loadbalancer.routing.upstream import Upstream
from loadbalancer.settings import Settings

KEPT_ALIVE = 1.5
"""Seconds an idle connection to a replica is kept: less than servers commonly do (Hypercorn and Node 5 s),
so that a request rarely meets one that the replica is just closing."""

SETTLES_WITHIN = 0.5
"""Seconds in which a replica that breaks its connections because it has died is known to be dead."""


@dataclass(slots=True)
class Route:
    """One request's way so far."""

    key: str
    tried: Collection[Upstream] = ()
    """The upstreams that it has failed on."""
    closed: bool = False
    """Whether a replica has broken the connection that it had accepted."""
    stale: Upstream | None = None
    """The upstream whose kept connection had ended; it gets the request again before any other does."""
    fresh: bool = False
    """Whether the request must go on a new connection, because a kept one has ended under it."""
    waits_until: float | None = None

    def deadline(self, patience: float) -> float:
        """Until when it waits: what it may wait in all begins when it first has to."""
        if self.waits_until is None:
            self.waits_until = asyncio.get_running_loop().time() + patience
        return self.waits_until


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
        self.source = source
        self._budget = budget
        self._timeout = queue_timeout
        self._size = queue_size
        self._waiting = 0

    @classmethod
    def of(cls, source: SnapshotSource, settings: Settings) -> Self:
        """Make the router of a process. Its lanes share it, and so one retry budget and one queue.

        Args:
            source: Publishes the snapshots that requests go by.
            settings: How long requests may wait, and how many.
        """
        return cls(source, RetryBudget(Monotonic()), settings.queue_timeout, settings.queue_size)

    def first(self, key: str) -> Upstream | None:
        """Count a request, and pick a replica for it, or None if there is none just now.

        Args:
            key: What it is hashed on.
        """
        self._budget.request()
        return self.source.snapshot.pick(key)

    def pick(self, route: Route) -> Upstream | None:
        """A replica that the request has not failed on, or None if there is none just now.

        After a stale connection that is the same replica, if it is still in rotation.

        Args:
            route: The request's way so far.
        """
        snapshot = self.source.snapshot
        same, route.stale = route.stale, None
        if same is not None and same in snapshot.upstreams:
            return same
        return snapshot.pick(route.key, route.tried)

    def may_go_on(self, route: Route, upstream: Upstream, error: UpstreamError, repeatable: bool) -> bool:
        """Note a failed attempt, and say whether there may be another.

        A stale connection says nothing of the replica: the request goes to the same one again, on a new
        connection, and this costs no retry (RFC 9112, section 9.3.1). It can happen once in a request.

        Args:
            route: The request's way so far.
            upstream: The upstream that it has failed on.
            error: How it has failed.
            repeatable: Whether the request can be done again after that.
        """
        if isinstance(error, UpstreamStaleError) and not route.fresh:
            route.fresh = repeatable
            route.stale = upstream if repeatable else None
            return repeatable
        if isinstance(error, UpstreamLeftError):
            # It was never sent, and many may wait for a connection to the one that leaves.
            route.tried = {*route.tried, upstream}
            return True
        _note(upstream, error)
        closed = isinstance(error, UpstreamClosedError)
        if not repeatable or (closed and route.closed) or not self._budget.withdraw():
            return False
        route.closed |= closed
        route.tried = {*route.tried, upstream}
        return True

    async def wait(self, route: Route, failure: UpstreamError | None = None) -> Upstream:
        """Wait for a replica when there is none.

        Args:
            route: The request's way so far.
            failure: How it has failed before, if it has.

        Raises:
            NoReplicaError: None came in time, or too many wait already, or none is to come.
            UpstreamError: It has failed on all that are in rotation.
        """
        try:
            return await self._wait(route)
        except NoReplicaError:
            if failure is not None and self.source.snapshot.upstreams:
                raise failure from None
            raise

    async def _wait(self, route: Route) -> Upstream:
        # One may have come since the caller has looked: a wait begins in a later turn of the loop.
        if (upstream := self.pick(route)) is not None:
            return upstream
        if self._waiting >= self._size:
            raise NoReplicaError(f"no replica is in rotation, and {self._waiting} requests wait for one")
        self._waiting += 1
        try:
            async with asyncio.timeout_at(route.deadline(self._timeout)):
                while True:
                    await self._next_snapshot()
                    if (upstream := self.pick(route)) is not None:
                        return upstream
        except TimeoutError:
            raise NoReplicaError("no replica is in rotation: try again in a moment") from None
        finally:
            self._waiting -= 1

    async def _next_snapshot(self) -> None:
        if not self.source.expects_upstream:
            raise NoReplicaError("no replica is in rotation, and none is to come")
        # Where the request has failed on all that are in rotation, they may be as well as ever, or about
        # to be found dead, which does not take long.
        patience = SETTLES_WITHIN if self.source.snapshot.upstreams else None
        async with asyncio.timeout(patience):
            await self.source.next_snapshot()


def _note(upstream: Upstream, error: UpstreamError) -> None:
    """Tell the upstream of a failure, unless a client could cause it by asking for one page."""
    if isinstance(error, UpstreamRefusedError):
        upstream.record_refusal()
    elif not isinstance(error, UpstreamGarbledError):
        upstream.record_failure()
