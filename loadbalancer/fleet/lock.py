"""The FIFO lock around membership and heartbeat counts.

Readers share the lock, and a writer holds it alone. All get it in the order of asking, so that neither
readers nor writers starve. It is held for a few lines of plain code, and never while anything is awaited.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fifolock import FifoLock

Holds = Mapping[type, int]


class Read(asyncio.Future[None]):
    """The mode of readers, who share the lock."""

    @staticmethod
    def is_compatible(holds: Holds) -> bool:
        """Whether the mode is compatible with the modes that are held now."""
        return not holds[Write]


class Write(asyncio.Future[None]):
    """The mode of a writer, who holds the lock alone."""

    @staticmethod
    def is_compatible(holds: Holds) -> bool:
        """Whether the mode is compatible with the modes that are held now."""
        return not holds[Read] and not holds[Write]


class FleetLock:
    """A first-come, first-served read/write lock."""

    def __init__(self) -> None:
        self._lock = FifoLock()

    def read(self) -> AbstractAsyncContextManager[None]:
        """Hold the lock together with other readers."""
        return self._hold(Read)

    def write(self) -> AbstractAsyncContextManager[None]:
        """Hold the lock alone."""
        return self._hold(Write)

    @asynccontextmanager
    async def _hold(self, mode: type[Any]) -> AsyncIterator[None]:
        holder = self._lock(mode)
        try:
            await holder.__aenter__()
        except asyncio.CancelledError:
            # After a waiter is cancelled, fifolock 0.0.20 does not wake the waiters behind it until the
            # next acquire or release, which may never come. This call wakes them.
            holder._maybe_acquire()
            raise
        try:
            yield
        finally:
            await holder.__aexit__(None, None, None)
