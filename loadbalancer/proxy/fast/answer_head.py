"""Heads of answers: llhttp validates the bytes, and this module works out the framing and what a client gets.

An answer with chunks and a length is read by its chunks, and the length goes (RFC 9112, section 6.3). Every
other doubt about where an answer ends is an `UpstreamGarbledError`: nothing passes that could be read in two
ways.
"""

import re
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

import httptools

from loadbalancer.errors import UpstreamGarbledError
from loadbalancer.proxy.fast.bodies import Framing
from loadbalancer.proxy.headers import TRAILER, Header, first, to_client

REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
"""Standard reason phrases; a code without one gets an empty phrase."""

BODILESS = frozenset({204, 304})
"""Final statuses without a body (RFC 9112, section 6.3)."""

_LENGTH_LINE = re.compile(rb"\n(?i:content-length)[ \t]*:[^\r\n]*\r?(?=\n)")
_CHUNKED_LINE = re.compile(rb"\n(?i:transfer-encoding):[ \t]*(?i:chunked)[ \t]*\r?\n")


@dataclass(slots=True)
class AnswerHead:
    """The head of an answer.

    Args:
        status: From 100 to 599.
        headers: As a client gets them, without those that say where the body ends.
        framing: How the replica shows the end of the body.
        length: Content-Length, of the body that HEAD would have had, too; None if there is none.
        keep_alive: Whether the replica's connection goes on.
        reason: The reason phrase.
        upgrade: The other protocol that is spoken from now on, with a 101.
        endless: Whether it is a stream of events, which may be silent.
    """

    status: int
    reason: bytes
    headers: list[Header]
    framing: Framing
    length: int | None
    keep_alive: bool
    upgrade: bytes
    endless: bool


class _Collector:
    """What llhttp calls while it reads a head."""

    __slots__ = ("headers", "keep_alive", "parser", "reason")

    def __init__(self) -> None:
        self.headers: list[Header] = []
        self.reason = b""
        self.keep_alive = False
        self.parser = httptools.HttpResponseParser(self)

    def on_status(self, part: bytes) -> None:
        self.reason += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.keep_alive = self.parser.should_keep_alive()


def names_both_lengths(part: bytes) -> bool:
    """Whether a part of a head names both lengths of a body, perhaps without their values.

    Args:
        part: The head from its first byte on.
    """
    part = part.lower()
    return b"\ncontent-length" in part and b"\ntransfer-encoding" in part


def read_answer_head(head: bytes, method: str, name: str) -> AnswerHead:
    """Read a whole head.

    Args:
        head: From the first byte of the status line to the empty line.
        method: Of the request: the answer to HEAD has no body.
        name: Of the replica, for errors.

    Raises:
        UpstreamGarbledError: It makes no sense.
    """
    both = _CHUNKED_LINE.search(head) is not None and _LENGTH_LINE.search(head) is not None
    if both:
        head = _LENGTH_LINE.sub(b"", head)
    read = _Collector()
    parser = read.parser
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise UpstreamGarbledError(f"{name} answered something that is not HTTP: {error}") from None
    finally:
        del read.parser  # the two refer to each other
    status = parser.get_status_code()
    if not 100 <= status <= 599:
        raise UpstreamGarbledError(f"{name} answered with the status {status}, which does not exist")
    framing, length = _framing(read.headers, status, method, name)
    kept = to_client(read.headers)
    if framing is Framing.CHUNKED:
        kept += [header for header in read.headers if header[0].lower() == TRAILER]
    media_type = (first(kept, b"content-type") or b"").lower()
    return AnswerHead(
        status,
        read.reason or REASONS.get(status, b""),
        [header for header in kept if header[0].lower() != b"content-length"],
        framing,
        length,
        # llhttp takes an answer without length for one that ends its connection, with HEAD too.
        keep_alive=not both and framing is not Framing.CLOSE and _keeps(read, parser.get_http_version()),
        upgrade=first(read.headers, b"upgrade") or b"",
        endless=media_type.startswith(b"text/event-stream") and framing is not Framing.NONE,
    )


def _framing(headers: list[Header], status: int, method: str, name: str) -> tuple[Framing, int | None]:
    """How the replica shows the end of the body, and its Content-Length (RFC 9112, section 6.3)."""
    length: int | None = None
    chunked = False
    for header, value in headers:
        match header.lower():
            case b"content-length":
                length = int(value)
            case b"transfer-encoding":
                if chunked or value.lower() != b"chunked":
                    raise UpstreamGarbledError(f"{name} answered in a Transfer-Encoding that is unknown")
                chunked = True
    if status < 200 or status in BODILESS or method == "HEAD":
        return Framing.NONE, length
    if chunked:
        return Framing.CHUNKED, None
    if length is not None:
        return (Framing.LENGTH if length else Framing.NONE), length
    return Framing.CLOSE, None


def _keeps(read: _Collector, version: str) -> bool:
    """Whether the connection persists (RFC 9112, section 9.3)."""
    options = b",".join(value for name, value in read.headers if name.lower() == b"connection").lower()
    words = {word.strip() for word in options.split(b",")}
    if b"close" in words:
        return False
    return version == "1.1" or b"keep-alive" in words


def with_date(headers: list[Header]) -> list[Header]:
    """The headers with a Date, which a proxy adds where it is missing (RFC 9110, section 6.6.1)."""
    if first(headers, b"date") is not None:
        return headers
    return [*headers, (b"date", formatdate(usegmt=True).encode())]
