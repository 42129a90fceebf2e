"""The event stream of `/lb/events`: the events of the replicas' lives, for any number of listeners.

The stream of a listener that is too slow ends, so that the fleet never waits for a browser. The browser
reconnects, and gets the whole state again.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

BACKLOG = 256
"""Maximum number of unread events of a listener. One more ends its stream."""

Event = Mapping[str, Any]


class EventStream:
    """Passes each published event to all listeners."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Queue[Event | None]] = set()
        self._closed = False

    def publish(self, event: Event) -> None:
        """Pass an event to all listeners, without waiting.

        Args:
            event: The event, with values that JSON can represent.
        """
        for queue in tuple(self._listeners):
            if queue.qsize() >= BACKLOG:
                self._end(queue)
            else:
                queue.put_nowait(event)

    async def listen(self) -> AsyncIterator[Event]:
        """Yield the events from now on, until `close`, or until `BACKLOG` events are unread."""
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
        """End all streams. Each listener first gets the events that are already published."""
        self._closed = True
        for queue in tuple(self._listeners):
            self._end(queue)

    def _end(self, queue: "asyncio.Queue[Event | None]") -> None:
        self._listeners.discard(queue)
        queue.put_nowait(None)
