"""Writing answers: how a replica's answer is framed for the client that gets it (RFC 9112, section 6)."""

from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus

from loadbalancer.answers import Answer, encode
from loadbalancer.errors import UpstreamError
from loadbalancer.proxy.headers import HOP_BY_HOP, Header, named_by


class Framing(Enum):
    """Where the body of an answer ends."""

    NONE = auto()
    """It has no body."""
    LENGTH = auto()
    """After as many bytes as its Content-Length says."""
    CHUNKED = auto()
    """After the last chunk."""
    CLOSE = auto()
    """Where the connection ends."""


NO_BODY = frozenset({204, 304})

REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


class _Role(Enum):
    """What an answer's header is to the proxy, when it is more than something to pass on."""

    DROPPED = auto()
    CHUNKED = auto()
    CONNECTION = auto()
    LENGTH = auto()
    TYPE = auto()


_IN_ANSWERS = {
    **dict.fromkeys(HOP_BY_HOP, _Role.DROPPED),
    b"transfer-encoding": _Role.CHUNKED,
    b"connection": _Role.CONNECTION,
    b"content-length": _Role.LENGTH,
    b"content-type": _Role.TYPE,
}


@dataclass(slots=True)
class AnswerHead:
    """The head of an answer, as the client gets it.

    Args:
        lines: The status line and the headers, without what the connection adds.
        framing: Where the body ends, for the client.
        until_close: Whether the replica shows the end of the body by closing.
        endless: Whether it is a stream of events, which may be silent for as long as it likes.
    """

    lines: list[bytes]
    framing: Framing
    until_close: bool
    endless: bool


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """What the head of an answer means, when it and its body come in one packet.

    Replicas give the same few heads again and again, so each is read once.

    Args:
        status: Of the answer.
        head: As the client gets it, without what the connection adds.
        length: Bytes of the body.
        keep_alive: Whether the replica's connection goes on.
    """

    status: int
    head: bytes
    length: int
    keep_alive: bool


def answer_head(
    status: int, reason: bytes, headers: list[Header], *, method: str, http_1_1: bool
) -> AnswerHead:
    """Read a replica's answer for a client.

    Args:
        status: The replica's.
        reason: The replica's.
        headers: As the replica sent them.
        method: Of the request: the answer to HEAD has no body.
        http_1_1: Whether the client knows chunks.

    Raises:
        UpstreamError: The answer's own framing makes no sense.
    """
    lines = [b"HTTP/1.1 %d %b\r\n" % (status, reason)]
    chunked = length = endless = False
    named: frozenset[bytes] = frozenset()
    for header in headers:
        role = _IN_ANSWERS.get(header[0].lower())
        if role is None:
            lines.append(b"%b: %b\r\n" % header)
        elif role is _Role.LENGTH:
            length = True
            lines.append(b"%b: %b\r\n" % header)
        elif role is _Role.TYPE:
            endless = header[1].startswith(b"text/event-stream")
            lines.append(b"%b: %b\r\n" % header)
        elif role is _Role.CHUNKED:
            if chunked or header[1].strip().lower() != b"chunked":
                raise UpstreamError("the replica answered in a Transfer-Encoding that is unknown")
            chunked = True
        elif role is _Role.CONNECTION:
            named |= named_by(header[1])
    if named:
        lines[1:] = [line for line in lines[1:] if line.partition(b":")[0].lower() not in named]
    if method == "HEAD" or status in NO_BODY:
        return AnswerHead(lines, Framing.NONE, until_close=False, endless=False)
    if length:
        if chunked:
            raise UpstreamError("the replica gave its answer both a length and chunks")
        return AnswerHead(lines, Framing.LENGTH, until_close=False, endless=endless)
    if not http_1_1:
        return AnswerHead(lines, Framing.CLOSE, until_close=not chunked, endless=endless)
    lines.append(b"transfer-encoding: chunked\r\n")
    return AnswerHead(lines, Framing.CHUNKED, until_close=not chunked, endless=endless)


def own_answer(answer: Answer, *, close: bool, head_only: bool) -> bytes:
    """An answer of our own, whole.

    Args:
        answer: What is said.
        close: Whether the connection ends with it.
        head_only: Whether it answers a HEAD request.
    """
    reason = REASONS.get(answer.status, b"")
    lines = [b"HTTP/1.1 %d %b\r\n" % (answer.status, reason)]
    lines += [b"%b: %b\r\n" % header for header in encode(answer)]
    if close:
        lines.append(b"connection: close\r\n")
    return b"".join([*lines, b"\r\n", b"" if head_only else answer.body])
