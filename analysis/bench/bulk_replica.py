"""A minimal replica for large bodies: it sends a body of 1 GiB from memory, and reads bodies of any size.

It is an `asyncio.Protocol` without a framework, so that the replica does not limit the transfer.
"""

import asyncio
import os
import re

import uvloop

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)

GIBIBYTE = 1 << 30
PIECE = bytes(1 << 18)

SMALL = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Bulk(asyncio.Protocol):
    """A connection of the replica."""

    def __init__(self) -> None:
        self._head = b""
        self._expected = 0
        self._left_to_send = 0
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Read the head of a request or a part of its body, and answer."""
        if self._expected:
            self._receive(len(data))
            return
        self._head += data
        head, end, body = self._head.partition(b"\r\n\r\n")
        if not end:
            return
        self._head = b""
        length = LENGTH.search(head + b"\r\n")
        if head.startswith(b"PUT") and length is not None:
            self._expected = int(length[1])
            self._receive(len(body))
        elif head.startswith(b"GET /big"):
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % GIBIBYTE)
            self._left_to_send = GIBIBYTE
            self._send()
        else:
            self._transport.write(SMALL)

    def pause_writing(self) -> None:
        """Stop sending."""
        self._paused = True

    def resume_writing(self) -> None:
        """Continue sending."""
        self._paused = False
        self._send()

    def _receive(self, count: int) -> None:
        """Count bytes of a request's body, and answer after the last."""
        self._expected -= count
        if not self._expected:
            self._transport.write(SMALL)

    def _send(self) -> None:
        while self._left_to_send and not self._paused:
            self._left_to_send -= len(PIECE)
            self._transport.write(PIECE)


async def _main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Bulk, "127.0.0.1", int(os.environ["PORT"]))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main())
