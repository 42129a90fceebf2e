"""The head of a client's request: checked, before anything of it is passed on.

Hypercorn's parsers let some things pass that a replica could read in another way, or not at all. A request
that goes on has one meaning and one framing, and fewer bytes than the bounds.
"""

import re

from hypercorn.typing import HTTPScope, WebsocketScope

from loadbalancer.errors import BadRequestError, NotImplementedByUsError
from loadbalancer.proxy.asgi.answer_head import TOKEN, VALUE
from loadbalancer.proxy.headers import Header, first

_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]+")
"""What may stand in a Host header (RFC 9110, section 7.2)."""

VISIBLE = re.compile(rb"[\x21-\x7e]+")
"""What a request target is made of (RFC 9112, section 3.2); HTTP/2 can carry anything."""

_FRAMING = (b"content-length", b"transfer-encoding")

_CONNECTION_SPECIFIC = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
)


def check(scope: HTTPScope | WebsocketScope) -> None:
    """Check the head of a request.

    Args:
        scope: The request, as ASGI has it.

    Raises:
        BadRequestError: It is no request that has one meaning.
        NotImplementedByUsError: It wants something that a load balancer does not do.
    """
    headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
    for name, value in headers:
        # RFC 9110, section 5.5.
        if not TOKEN.fullmatch(name) or not VALUE.fullmatch(value):
            raise BadRequestError("a header has a forbidden character")
    if not VISIBLE.fullmatch(scope["raw_path"] + scope["query_string"]):
        raise BadRequestError("the request target has a forbidden character")
    host = first(headers, b"host")
    # HTTP/1.0 and HTTP/2 know requests without a host (RFC 9113, section 8.3.1).
    if host is not None and not _HOST.fullmatch(host) and not (host == b"" and _is_http_2(scope)):
        raise BadRequestError("the Host header is no host")
    if scope["type"] == "http":
        _check_method(scope["method"])
        _check_framing(scope, headers)
    elif first(headers, b"transfer-encoding") is not None or body_length(scope):
        raise BadRequestError("a request for another protocol has no body")


def body_length(scope: HTTPScope | WebsocketScope) -> int | None:
    """How many bytes of a body are announced; None if their number is not known.

    Args:
        scope: A request that has been checked.
    """
    headers = scope["headers"]
    length = first(headers, b"content-length")
    if length is not None:
        return int(length)
    return None if _is_http_2(scope) or first(headers, b"transfer-encoding") is not None else 0


def expects_continue(scope: HTTPScope) -> bool:
    """Whether the client waits for `100 Continue` before it sends a body (RFC 9110, section 10.1.1).

    Args:
        scope: A request that has been checked.
    """
    expectation = first(scope["headers"], b"expect") or b""
    return (
        expectation.lower() == b"100-continue" and scope["http_version"] != "1.0" and body_length(scope) != 0
    )


def _check_method(method: str) -> None:
    # The HTTP library writes methods in upper case, and they are case-sensitive (RFC 9110, section 9.1).
    if not TOKEN.fullmatch(method.encode("latin-1")) or method != method.upper():
        raise NotImplementedByUsError("this method is not understood here")


def _check_framing(scope: HTTPScope, headers: list[Header]) -> None:
    lengths, codings = ([value for name, value in headers if name == framing] for framing in _FRAMING)
    if lengths and codings:
        # RFC 9112, section 6.3: it may be an attempt to smuggle a request.
        raise BadRequestError("Content-Length and Transfer-Encoding exclude each other")
    if len(lengths) > 1 or not all(length.isdigit() for length in lengths):
        raise BadRequestError("the Content-Length is no length")
    if codings and scope["http_version"] == "1.0":
        # RFC 9112, section 6.1.
        raise BadRequestError("HTTP/1.0 knows no Transfer-Encoding")
    if [coding.lower() for coding in codings] not in ([], [b"chunked"]):
        raise NotImplementedByUsError("the only Transfer-Encoding understood here is chunked")
    if _is_http_2(scope) and not _CONNECTION_SPECIFIC.isdisjoint(name for name, _ in headers):
        # RFC 9113, section 8.2.2.
        raise BadRequestError("HTTP/2 has no connection-specific headers")


def _is_http_2(scope: HTTPScope | WebsocketScope) -> bool:
    return scope["http_version"] == "2"
