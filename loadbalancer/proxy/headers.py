"""What happens to headers on their way through: the rules that every lane shares.

Hop-by-hop headers concern one connection and end with it; end-to-end headers pass untouched, in their
order, repeated ones apart. Names are compared in lower case, as the parsers deliver them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

Header = tuple[bytes, bytes]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110, section 7.6.1, and the older ones that proxies still meet (RFC 2616, section 13.5.1)."""

_PROTECTED = frozenset({b"host", b"content-length"})
"""What no `Connection` header may have removed: a message would be read differently without them."""

_USUAL = frozenset({b"keep-alive", b"close", b"upgrade", b""})
_NONE: frozenset[bytes] = frozenset()


class _Role(Enum):
    """What a request's header is to the proxy, when it is more than something to pass on."""

    DROPPED = auto()
    CONNECTION = auto()
    FORWARDED_FOR = auto()
    HOST = auto()
    REQUEST_ID = auto()


_IN_REQUESTS = {
    **dict.fromkeys(HOP_BY_HOP, _Role.DROPPED),
    # Replaced by what we know ourselves.
    b"x-forwarded-proto": _Role.DROPPED,
    b"x-forwarded-host": _Role.DROPPED,
    # `100-continue` is answered by the server that the client speaks to.
    b"expect": _Role.DROPPED,
    b"connection": _Role.CONNECTION,
    b"x-forwarded-for": _Role.FORWARDED_FOR,
    b"host": _Role.HOST,
    b"x-request-id": _Role.REQUEST_ID,
}

_PROTO = {
    scheme: (b"x-forwarded-proto", told)
    for scheme, told in {"http": b"http", "ws": b"http", "https": b"https", "wss": b"https"}.items()
}


def first(headers: Iterable[Header], name: bytes) -> bytes | None:
    """The value of the first header of that name (given in lower case), or None."""
    for candidate, value in headers:
        if candidate.lower() == name:
            return value
    return None


def to_replica(headers: Sequence[Header], *, client: str, scheme: str, request_id: str) -> list[Header]:
    """The headers of a request as the replica gets them.

    Hop-by-hop headers go. `X-Forwarded-For` grows by the client's address; `X-Forwarded-Proto` and
    `-Host` say how the client came to us, whatever it claims; `X-Request-Id` is added if it is missing.

    Args:
        headers: As received.
        client: Address of the client; empty if unknown.
        scheme: `http` or `https`, or `ws` or `wss`: as the client spoke.
        request_id: What `X-Request-Id` says, or what was made up.
    """
    parts = split(headers)
    kept, hops = parts.kept, parts.hops
    if client:
        hops.append(client.encode("ascii", "replace"))
    if hops:
        kept.append((b"x-forwarded-for", b", ".join(hops)))
    kept.append(_PROTO.get(scheme) or (b"x-forwarded-proto", scheme.encode()))
    if parts.host:
        kept.append((b"x-forwarded-host", parts.host))
    if not parts.request_id:
        kept.append((b"x-request-id", request_id.encode()))
    return kept


@dataclass(slots=True)
class RequestHeaders:
    """The headers of a request, sorted by what becomes of them.

    Args:
        kept: Go on to the replica as they are.
        hops: The values of `X-Forwarded-For`.
        host: The value of `Host`; empty if there is none.
        request_id: The value of `X-Request-Id`; empty if there is none.
    """

    kept: list[Header]
    hops: list[bytes]
    host: bytes
    request_id: bytes


def split(headers: Iterable[Header]) -> RequestHeaders:
    """Sort the headers of a request in one pass.

    Args:
        headers: As received.
    """
    kept: list[Header] = []
    hops: list[bytes] = []
    named: frozenset[bytes] = frozenset()
    host = request_id = b""
    for header in headers:
        role = _IN_REQUESTS.get(header[0].lower())
        if role is None:
            kept.append(header)
        elif role is _Role.HOST:
            kept.append(header)
            host = host or header[1]
        elif role is _Role.REQUEST_ID:
            kept.append(header)
            request_id = request_id or header[1]
        elif role is _Role.FORWARDED_FOR:
            hops.append(header[1])
        elif role is _Role.CONNECTION:
            named |= named_by(header[1])
    if named:
        kept = [header for header in kept if header[0].lower() not in named]
    return RequestHeaders(kept, hops, host, request_id)


def to_client(headers: Sequence[Header]) -> list[Header]:
    """The headers of an answer as the client gets them: all but the hop-by-hop ones.

    Args:
        headers: As the replica sent them.
    """
    named: frozenset[bytes] = frozenset()
    for name, value in headers:
        if name.lower() == b"connection":
            named |= named_by(value)
    dropped = HOP_BY_HOP | named
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def named_by(connection: bytes) -> frozenset[bytes]:
    """The headers that a `Connection` header declares to be hop-by-hop (RFC 9110, section 7.6.1).

    Args:
        connection: Its value.
    """
    value = connection.lower()
    if value in _USUAL:
        return _NONE
    return frozenset(token.strip() for token in value.split(b",")) - _PROTECTED
