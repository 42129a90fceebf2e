"""The head of a replica's answer: checked, and as the client gets it."""

import re
from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus

from loadbalancer.errors import UpstreamGarbledError
from loadbalancer.proxy.headers import Header, first, to_client

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A header's name (RFC 9110, section 5.1)."""

VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
"""A header's value: no control character but the tab (RFC 9110, section 5.5)."""

_NO_LENGTH = frozenset({204})
"""Statuses whose answers have no Content-Length (RFC 9110, section 8.6)."""

_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}

_EVENTS = b"text/event-stream"


def answer_headers(replica: str, status: int, headers: Sequence[Header]) -> list[Header]:
    """Check the head of an answer, and say what the client gets of it.

    Hop-by-hop headers go, and so does framing where there is no body. Whatever has no Date is given one
    (RFC 9110, section 6.6.1).

    Args:
        replica: Its name, for the message.
        status: Of the answer.
        headers: As received.

    Raises:
        UpstreamGarbledError: A client could not read it, or would misread it.
    """
    if status < 200:
        # RFC 9110, section 15.2.2: a protocol is only switched to when the client has asked for it.
        raise UpstreamGarbledError(f"{replica} switched protocols without being asked to")
    if status > 999:
        raise UpstreamGarbledError(f"{replica} answered with a status that there is not")
    _check(replica, headers)
    passed = to_client(headers)
    if status in _NO_LENGTH:
        passed = [(name, value) for name, value in passed if name.lower() != b"content-length"]
    if first(passed, b"date") is None:
        passed.append((b"date", formatdate(usegmt=True).encode()))
    return passed


def handshake_headers(replica: str, headers: Sequence[Header]) -> list[Header]:
    """The headers of a replica's WebSocket handshake that the client gets, names in lower case.

    Each side has a handshake of its own (RFC 6455, section 4). A 101 has no framing (RFC 9112, section 6.1).

    Args:
        replica: Its name, for the message.
        headers: As received.

    Raises:
        UpstreamGarbledError: A client could not read them.
    """
    _check(replica, headers)
    passed = [(name.lower(), value) for name, value in to_client(headers)]
    return [(n, v) for n, v in passed if n != b"content-length" and not n.startswith(b"sec-websocket-")]


def _check(replica: str, headers: Sequence[Header]) -> None:
    for name, value in headers:
        if not TOKEN.fullmatch(name) or not VALUE.fullmatch(value):
            raise UpstreamGarbledError(f"{replica} answered with a header that has a forbidden character")


def reason_phrase(status: int, given: str | None = None) -> bytes:
    """The phrase beside a status: the replica's own, or the standard one (RFC 9110, section 15).

    Args:
        status: Of an answer.
        given: What the replica wrote, as the HTTP library decodes it.
    """
    phrase = (given or "").encode(errors="surrogateescape")
    return phrase if phrase and VALUE.fullmatch(phrase) else _PHRASES.get(status, b"")


def is_event_stream(headers: Sequence[Header]) -> bool:
    """Whether an answer is a stream of server-sent events, which may be silent for any time.

    Args:
        headers: Of the answer.
    """
    media_type = (first(headers, b"content-type") or b"").partition(b";")[0]
    return media_type.strip().lower() == _EVENTS
