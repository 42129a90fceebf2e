"""Where the body of a message ends, in either direction (RFC 9112, section 6).

A reader is made for one body. It takes bytes as they come and says which of them are the body's, whether the
body is whole, and which bytes come after it. So no byte of a later message is ever read as part of this one.
Pure: no sockets.
"""

from enum import Enum, auto
from typing import Protocol

import httptools

from loadbalancer.proxy.headers import Header, may_be_trailer

MAX_NUMBER_OF_TRAILERS = 100
"""Trailers of one message; common servers send one or two."""


class Framing(Enum):
    """What shows the end of a body."""

    NONE = auto()
    """There is no body."""
    LENGTH = auto()
    """Content-Length."""
    CHUNKED = auto()
    """The last chunk."""
    CLOSE = auto()
    """The end of the connection; for answers only."""


class BodyFramingError(Exception):
    """The chunks make no sense."""


class TrailersTooLargeError(BodyFramingError):
    """The trailers, or the bytes between two parts of the body, are more than the bound."""


class BodyReader(Protocol):
    """Reads one body."""

    whole: bool
    """Whether the body has ended."""

    def read(self, data: bytes) -> tuple[bytes, bytes]:
        """Take bytes of the connection.

        Args:
            data: The next ones.

        Returns:
            Those that belong to the body, without its framing, and those that come after the message.

        Raises:
            BodyFramingError: The framing is broken.
        """


class LengthReader:
    """Reads a body of known length.

    Args:
        length: Bytes of the body; 0 for none.
    """

    __slots__ = ("_left", "whole")

    def __init__(self, length: int) -> None:
        self._left = length
        self.whole = length == 0

    def read(self, data: bytes) -> tuple[bytes, bytes]:
        """See `BodyReader.read`."""
        size = len(data)
        if size < self._left:
            self._left -= size
            return data, b""
        part, rest = (data, b"") if size == self._left else (data[: self._left], data[self._left :])
        self._left = 0
        self.whole = True
        return part, rest


class UntilCloseReader:
    """Reads a body that ends with its connection."""

    __slots__ = ("whole",)

    def __init__(self) -> None:
        self.whole = False

    def read(self, data: bytes) -> tuple[bytes, bytes]:
        """See `BodyReader.read`."""
        return data, b""


class ChunkedReader:
    """Reads a body in chunks (RFC 9112, section 7.1) by llhttp.

    A chunked message ends with an empty line, so llhttp is fed up to each empty line and no further: it never
    sees a byte of the next message. Bytes that are not the body's (sizes, extensions, trailers) are bounded.

    Args:
        limit: Bytes of framing between two parts of the body, and of all trailers.
    """

    __slots__ = (
        "_chunk_began",
        "_framing",
        "_limit",
        "_parser",
        "_parts",
        "_size",
        "_tail",
        "trailers",
        "whole",
    )

    def __init__(self, limit: int) -> None:
        self.whole = False
        self.trailers: list[Header] = []
        self._limit = limit
        self._parts: list[bytes] = []
        self._tail = b""
        self._size = 0
        self._framing = 0
        self._chunk_began = False
        # The head was read elsewhere: this one only tells llhttp that chunks follow.
        self._parser = httptools.HttpRequestParser(_Chunks(self))
        self._parser.feed_data(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.trailers.clear()
        self._size = 0

    def read(self, data: bytes) -> tuple[bytes, bytes]:
        """See `BodyReader.read`."""
        start = 0
        tail = self._tail
        while not self.whole and start < len(data):
            end = self._next_stop(tail, data, start)
            self._feed(data[start:end] if start or end < len(data) else data)
            start, tail = end, b""
        self._tail = (self._tail + data)[-3:] if len(data) < 3 else data[-3:]
        part = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        return part, data[start:]

    @staticmethod
    def _next_stop(tail: bytes, data: bytes, start: int) -> int:
        """Where to stop feeding: behind the next empty line, which may have begun in the bytes before."""
        if tail:
            across = (tail + data[:3]).find(b"\r\n\r\n")
            if across >= 0:
                return across + 4 - len(tail)
        found = data.find(b"\r\n\r\n", start)
        return found + 4 if found >= 0 else len(data)

    def _feed(self, data: bytes) -> None:
        parts = len(self._parts)
        self._chunk_began = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            raise error.__context__ or error from None
        except httptools.HttpParserError as error:
            raise BodyFramingError(str(error)) from None
        if self.whole:
            del self._parser  # the two refer to each other
        elif len(self._parts) > parts or self._chunk_began:
            self._framing = 0
        else:
            self._framing += len(data)
            if self._framing > self._limit:
                raise TrailersTooLargeError(f"more than {self._limit} bytes come without a part of the body")

    def begin_chunk(self) -> None:
        """The size of a chunk has come."""
        self._chunk_began = True

    def part(self, data: bytes) -> None:
        """A part of the body has come."""
        self._parts.append(data)

    def trailer(self, name: bytes, value: bytes) -> None:
        """A header has come after the body."""
        self.trailers.append((name.lower(), value.strip(b" \t")))
        self._size += len(name) + len(value) + 4
        if self._size > self._limit or len(self.trailers) > MAX_NUMBER_OF_TRAILERS:
            raise TrailersTooLargeError(
                f"the trailers are more than {self._limit} bytes or {MAX_NUMBER_OF_TRAILERS} in number"
            )

    def end(self) -> None:
        """The last byte of the message has come."""
        self.whole = True


class _Chunks:
    """What llhttp calls; of the head that the reader makes up only the end is seen."""

    def __init__(self, reader: ChunkedReader) -> None:
        self.on_chunk_header = reader.begin_chunk
        self.on_body = reader.part
        self.on_header = reader.trailer
        self.on_message_complete = reader.end


def allowed_trailers(body: BodyReader) -> list[Header]:
    """The trailers of a body that may pass (RFC 9110, section 6.5.1).

    Args:
        body: A body that is whole.
    """
    if not isinstance(body, ChunkedReader):
        return []
    return [trailer for trailer in body.trailers if may_be_trailer(trailer[0])]
