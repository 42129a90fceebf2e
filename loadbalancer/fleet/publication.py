"""The snapshot that requests go by, and the news that there is another."""

import asyncio

from loadbalancer.routing.snapshot import Snapshot


class Publication:
    """Holds the current snapshot.

    Args:
        snapshot: The first.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def publish(self, snapshot: Snapshot) -> None:
        """Let requests go by another from now on: one assignment."""
        self.snapshot = snapshot
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)

    async def next_snapshot(self) -> None:
        """Return when another has been published."""
        await asyncio.shield(self._changed)
