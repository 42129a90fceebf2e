"""The snapshot that requests go by, and the news that there is another."""

import asyncio
from collections.abc import Callable

from loadbalancer.routing.snapshot import Snapshot


class Publication:
    """Holds the current snapshot (see `SnapshotSource`).

    Args:
        snapshot: The first.
        hopeful: Whether there will be a replica in rotation by and by.
    """

    def __init__(self, snapshot: Snapshot, hopeful: Callable[[], bool]) -> None:
        self.snapshot = snapshot
        self._hopeful = hopeful
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def hopeful(self) -> bool:
        """Whether there will be a replica in rotation by and by."""
        return self._hopeful()

    def publish(self, snapshot: Snapshot) -> None:
        """Let requests go by another from now on: one assignment."""
        self.snapshot = snapshot
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)

    async def next_snapshot(self) -> None:
        """Return when another has been published."""
        await asyncio.shield(self._changed)
