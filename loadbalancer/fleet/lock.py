"""The FIFO lock around membership and heartbeat counts.

Readers share it, a writer has it alone, and everyone gets it in the order of asking, so that neither
side starves the other. It is held for a few lines of plain code only: never while a container
starts, a socket waits or anything else is awaited.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fifolock import FifoLock

Holds = Mapping[type, int]


class Read(asyncio.Future[None]):
    """Shared with other readers."""

    @staticmethod
    def is_compatible(holds: Holds) -> bool:
        """Whether it may be held beside what is held now."""
        return not holds[Write]


class Write(asyncio.Future[None]):
    """Held alone."""

    @staticmethod
    def is_compatible(holds: Holds) -> bool:
        """Whether it may be held beside what is held now."""
        return not holds[Read] and not holds[Write]


class FleetLock:
    """A first-come, first-served read/write lock."""

    def __init__(self) -> None:
        self._lock = FifoLock()

    def read(self) -> AbstractAsyncContextManager[None]:
        """Hold it together with other readers."""
        return self._hold(Read)

    def write(self) -> AbstractAsyncContextManager[None]:
        """Hold it alone."""
        return self._hold(Write)

    @asynccontextmanager
    async def _hold(self, mode: type[Any]) -> AsyncIterator[None]:
        holder = self._lock(mode)
        try:
            await holder.__aenter__()
        except asyncio.CancelledError:
            # fifolock 0.0.20 leaves those behind a cancelled waiter asleep until the next acquire or
            # release, which may never come: pass over its queue once more.
            holder._maybe_acquire()
            raise
        try:
            yield
        finally:
            await holder.__aexit__(None, None, None)
