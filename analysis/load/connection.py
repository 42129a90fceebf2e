"""One connection of the load generator, which carries one request at a time.

It is an `asyncio.Protocol` that parses answers with llhttp, so that the generator takes little CPU time. A
slower generator would limit the rate and so measure itself.
"""

import asyncio
from collections.abc import Callable

import httptools

Done = Callable[["Connection", int, bytes], None]
"""Gets the connection, the status and the body at the end of a request; status 0: the body names an error."""

BODY_KEPT = 4096
"""Bytes of a body that are kept: enough for the name of the replica."""


class Connection(asyncio.Protocol):
    """A connection of the load generator.

    Args:
        done: Called at the end of each request.
        closed: Called when the connection has ended.
    """

    def __init__(self, done: Done, closed: Callable[["Connection"], None]) -> None:
        self._done = done
        self._closed = closed
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._complete = False
        self._began = False
        self.busy = False
        """Whether a request waits for its answer."""
        self.request = -1
        """The number of the request in flight, or of the last one."""
        self.transport: asyncio.Transport

    @property
    def usable(self) -> bool:
        """Whether the connection can carry another request now."""
        return not self.busy and not self.transport.is_closing()

    def send(self, number: int, request: bytes) -> None:
        """Send a request.

        Args:
            number: Number of the request.
            request: Bytes of the request.
        """
        self.busy, self.request = True, number
        self.transport.write(request)

    def give_up(self, reason: str) -> None:
        """End the request in flight with an error, and abort the connection."""
        self.transport.abort()
        self._end(0, reason.encode())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Parse a part of an answer; end the request when the answer is complete."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.give_up("not HTTP")
            return
        if self._complete:
            self._complete = False
            status, kept = self._parser.get_status_code(), self._parser.should_keep_alive()
            body, self._body = self._body, b""
            if not kept:
                self.transport.close()
            self._end(status, body)

    def connection_lost(self, error: Exception | None) -> None:
        """End the request in flight, if any, with an error."""
        self._end(0, b"closed during an answer" if self._began else b"closed before an answer")
        self._closed(self)

    def on_message_begin(self) -> None:
        """Note that an answer has begun."""
        self._began = True

    def on_body(self, data: bytes) -> None:
        """Keep the first bytes of the body."""
        if len(self._body) < BODY_KEPT:
            self._body += data

    def on_message_complete(self) -> None:
        """Note that the answer is complete."""
        self._complete = True
        self._began = False

    def _end(self, status: int, body: bytes) -> None:
        if self.busy:
            self.busy = False
            self._done(self, status, body)
