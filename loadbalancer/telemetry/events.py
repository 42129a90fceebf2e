"""The event stream: what happens to the replicas, told to whoever listens at `/lb/events`.

A listener that does not keep up is let go rather than waited for: it reconnects and asks anew, while
the fleet never waits for a browser.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

BACKLOG = 256
"""Events held for a listener that reads slowly, before it is let go."""

Event = Mapping[str, Any]


class EventStream:
    """Passes each published event to all who listen at that moment."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Queue[Event | None]] = set()
        self._closed = False

    def publish(self, event: Event) -> None:
        """Tell everybody; never waits.

        Args:
            event: Plain values that JSON can hold.
        """
        for queue in tuple(self._listeners):
            if queue.qsize() >= BACKLOG:
                self._dismiss(queue)
            else:
                queue.put_nowait(event)

    async def listen(self) -> AsyncIterator[Event]:
        """Yield what is published from now on, until `close`, or until too much lies unread."""
        if self._closed:
            return
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._listeners.discard(queue)

    def close(self) -> None:
        """Let everybody go: each listener gets what is already published, then its stream ends."""
        self._closed = True
        for queue in tuple(self._listeners):
            self._dismiss(queue)

    def _dismiss(self, queue: "asyncio.Queue[Event | None]") -> None:
        self._listeners.discard(queue)
        queue.put_nowait(None)
