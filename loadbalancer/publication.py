"""The snapshot that requests go by, and the news that there is another."""

import asyncio
from collections.abc import Callable

from loadbalancer.routing.snapshot import Snapshot


class Publication:
    """Holds the current snapshot (see `SnapshotSource`).

    Args:
        snapshot: The first.
        expects_upstream: Whether an upstream is expected to enter the rotation soon.
    """

    def __init__(self, snapshot: Snapshot, expects_upstream: Callable[[], bool]) -> None:
        self.snapshot = snapshot
        self._expects_upstream = expects_upstream
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def expects_upstream(self) -> bool:
        """Whether an upstream is expected to enter the rotation soon, so that a request may wait for it."""
        return self._expects_upstream()

    def publish(self, snapshot: Snapshot) -> None:
        """Let requests go by another from now on: one assignment."""
        self.snapshot = snapshot
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)

    async def next_snapshot(self) -> None:
        """Return when another has been published."""
        await asyncio.shield(self._changed)
