"""Writing answers: how a replica's answer is framed for the client that gets it (RFC 9112, section 6)."""

from enum import Enum, auto
from http import HTTPStatus

from loadbalancer.errors import Answer, UpstreamError
from loadbalancer.proxy.client import encode
from loadbalancer.proxy.headers import HOP_BY_HOP, Header


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

_STANDARD_TOKENS = frozenset({b"keep-alive", b"close", b"upgrade", b""})


def answer_head(
    status: int, reason: bytes, headers: list[Header], *, method: str, http_1_1: bool
) -> tuple[bytearray, Framing]:
    """The head of an answer as far as it is known before the connection's own headers.

    Args:
        status: The replica's.
        reason: The replica's.
        headers: As the replica sent them.
        method: Of the request: the answer to HEAD has no body.
        http_1_1: Whether the client knows chunks.

    Returns:
        The head without its end, and how the body is framed for the client.

    Raises:
        UpstreamError: The answer's own framing makes no sense.
    """
    head = bytearray(b"HTTP/1.1 %d %b\r\n" % (status, reason))
    chunked = length = False
    tokens: frozenset[bytes] = frozenset()
    for name, value in headers:
        lower = name.lower()
        if lower in HOP_BY_HOP:
            if lower == b"transfer-encoding":
                if chunked or value.strip().lower() != b"chunked":
                    raise UpstreamError("the replica answered in a Transfer-Encoding that is unknown")
                chunked = True
            elif lower == b"connection":
                tokens |= frozenset(token.strip().lower() for token in value.split(b","))
            continue
        if lower == b"content-length":
            length = True
        head += b"%b: %b\r\n" % (name, value)
    if tokens - _STANDARD_TOKENS:
        kept = [(n, v) for n, v in headers if n.lower() not in tokens or n.lower() == b"content-length"]
        return answer_head(
            status,
            reason,
            [(n, v) for n, v in kept if n.lower() != b"connection"],
            method=method,
            http_1_1=http_1_1,
        )
    if method == "HEAD" or status in NO_BODY:
        return head, Framing.NONE
    if length and chunked:
        raise UpstreamError("the replica gave its answer both a length and chunks")
    if length:
        return head, Framing.LENGTH
    if not http_1_1:
        return head, Framing.CLOSE
    head += b"transfer-encoding: chunked\r\n"
    return head, Framing.CHUNKED


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
