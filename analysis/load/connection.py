"""One connection of the load generator: one request at a time, and what became of it.

Written on the bare protocol, with llhttp for the parsing: a generator that costs more than what it loads
would measure itself.
"""

import asyncio
from collections.abc import Callable

import httptools

Done = Callable[["Connection", int, bytes], None]
"""Told how a request has ended: status (0: none came) and body, or the kind of error in its place."""

BODY_KEPT = 4096
"""Bytes of a body that are kept: enough to say who has answered."""


class Connection(asyncio.Protocol):
    """A connection.

    Args:
        done: Told of each request's end.
        closed: Told of its own.
    """

    def __init__(self, done: Done, closed: Callable[["Connection"], None]) -> None:
        self._done = done
        self._closed = closed
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._complete = False
        self._began = False
        self.busy = False
        """Whether an answer is waited for."""
        self.request = -1
        """The number of the request that is under way."""
        self.transport: asyncio.Transport

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return not self.busy and not self.transport.is_closing()

    def send(self, number: int, request: bytes) -> None:
        """Send a request.

        Args:
            number: Of the request.
            request: Its bytes.
        """
        self.busy, self.request = True, number
        self.transport.write(request)

    def give_up(self, reason: str) -> None:
        """Wait no longer."""
        self.transport.abort()
        self._end(0, reason.encode())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """A part of an answer has come."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.give_up("no HTTP")
            return
        if self._complete:
            self._complete = False
            status, goes_on = self._parser.get_status_code(), self._parser.should_keep_alive()
            body, self._body = self._body, b""
            if not goes_on:
                self.transport.close()
            self._end(status, body)

    def connection_lost(self, error: Exception | None) -> None:
        """The connection has ended."""
        self._end(0, b"broken off" if self._began else b"closed before an answer")
        self._closed(self)

    def on_message_begin(self) -> None:
        """An answer begins."""
        self._began = True

    def on_body(self, data: bytes) -> None:
        """A part of its body."""
        if len(self._body) < BODY_KEPT:
            self._body += data

    def on_message_complete(self) -> None:
        """Its end."""
        self._complete = True
        self._began = False

    def _end(self, status: int, body: bytes) -> None:
        if self.busy:
            self.busy = False
            self._done(self, status, body)
