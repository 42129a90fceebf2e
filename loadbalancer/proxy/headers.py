"""What happens to headers on their way through: the rules that every lane shares.

Hop-by-hop headers concern one connection and end with it; end-to-end headers pass untouched, in their
order, repeated ones apart. Forwarding headers pass only if a trusted proxy sent them (see `forwarding`).
Names are compared in lower case, as the parsers deliver them. A name that differs from one with a meaning
here only in its separators, such as `X_Request_Id` or `Content_Length`, is dropped: a server behind that
turns both into one name (CGI) would take the client's for ours. Other names with `_` pass.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from loadbalancer.proxy.forwarding import FORWARDING_NAMES, folded, is_forwarding, spellings

Header = tuple[bytes, bytes]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110, section 7.6.1, the older ones that proxies still meet (RFC 2616, section 13.5.1), and the one
of the upgrade to HTTP/2 that is no more (RFC 9113, section 3.1).

`TE` says what this connection takes (RFC 9110, section 10.1.4): a lane that passes trailers on may send its
own `TE: trailers`, which its `Connection` must name. `Proxy-Authorization` and `Proxy-Authenticate` are meant
for a forward proxy (RFC 9110, section 11.7), which this is not: they pass."""

TRAILER = b"trailer"
"""Announces trailers (RFC 9110, section 6.6.2): it passes with them, and is dropped where they are."""

PROTECTED = frozenset({b"host", b"content-length", b"x-request-id"})
"""What no `Connection` header may have removed, as no forwarding header: a message would be read differently
without them, or would lack what this proxy has to add."""

_NEVER_TRAILERS = HOP_BY_HOP | {
    # Framing, and what the message is (RFC 9110, section 6.5.1).
    *(b"content-length", b"content-encoding", b"content-type", b"content-range", TRAILER),
    # Routing, and what this proxy adds.
    *(b"host", b"x-request-id"),
    # Request modifiers: controls and conditions.
    *(b"cache-control", b"expect", b"max-forwards", b"pragma", b"range"),
    *(b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range"),
    # Authentication and sessions.
    *(b"authorization", b"proxy-authorization", b"www-authenticate", b"proxy-authenticate"),
    *(b"cookie", b"set-cookie"),
    # Response control data.
    *(b"age", b"date", b"expires", b"location", b"retry-after", b"vary", b"warning"),
}

_USUAL = frozenset({b"keep-alive", b"close", b"upgrade", b""})
_NONE: frozenset[bytes] = frozenset()


class _Role(Enum):
    """What a request's header is to the proxy, when it is more than something to pass on."""

    DROPPED = auto()
    CONNECTION = auto()
    FORWARDED_FOR = auto()
    FORWARDED_PROTO = auto()
    FORWARDED_HOST = auto()
    HOST = auto()
    REQUEST_ID = auto()


_IN_REQUESTS = {
    **dict.fromkeys(HOP_BY_HOP, _Role.DROPPED),
    TRAILER: _Role.DROPPED,
    # `100-continue` is answered by the server that the client speaks to.
    b"expect": _Role.DROPPED,
    b"connection": _Role.CONNECTION,
    b"host": _Role.HOST,
    b"x-request-id": _Role.REQUEST_ID,
}

_FROM_TRUSTED = {
    b"x-forwarded-for": _Role.FORWARDED_FOR,
    b"x-forwarded-proto": _Role.FORWARDED_PROTO,
    b"x-forwarded-host": _Role.FORWARDED_HOST,
}

_SHADOWED = _IN_REQUESTS.keys() | PROTECTED
"""Names that no header may resemble: what this proxy adds, and what frames a message."""

MEANT_NAMES = b"|".join((FORWARDING_NAMES, *(spellings(name) for name in sorted(_SHADOWED))))
"""Alternatives of a regular expression that ignores case: all names of a request's headers that have a
meaning here, or resemble one that has. Others go on as they are, unless `Connection` names them."""

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


def may_be_trailer(name: bytes) -> bool:
    """Whether a field may pass in the trailers of a message.

    Not those that a recipient must know before the body, nor those that it could take for a header that was
    checked (RFC 9110, section 6.5.1).

    Args:
        name: As sent.
    """
    name = folded(name)
    return name not in _NEVER_TRAILERS and not is_forwarding(name)


def to_replica(
    headers: Sequence[Header], *, client: str, scheme: str, request_id: str, via: str = ""
) -> list[Header]:
    """The headers of a request as the replica gets them.

    Hop-by-hop headers go. If the client itself has connected, `X-Forwarded-For`, `-Proto` and `-Host` say so
    whatever it claims, and all other forwarding headers are dropped; `X-Real-IP` too, for `X-Forwarded-For`
    then is that one address. Those of a trusted proxy are kept: `X-Forwarded-For` grows by the proxy's
    address, and `-Proto` and `-Host` are added if they are missing. `X-Request-Id` is added if it is missing.

    Args:
        headers: As received.
        client: Address of the client; empty if unknown.
        scheme: `http` or `https`, or `ws` or `wss`: as the client spoke.
        request_id: What `X-Request-Id` says, or what was made up.
        via: Address of the trusted proxy that has passed the request on; empty: there is none.
    """
    parts = split(headers, trusted=bool(via))
    kept, hops = parts.kept, parts.hops
    if peer := via or client:
        hops.append(peer.encode("ascii", "replace"))
    if hops:
        kept.append((b"x-forwarded-for", b", ".join(hops)))
    if not parts.told_proto:
        kept.append(_PROTO.get(scheme) or (b"x-forwarded-proto", scheme.encode()))
    if parts.host and not parts.told_host:
        kept.append((b"x-forwarded-host", parts.host))
    if not parts.request_id:
        kept.append((b"x-request-id", request_id.encode()))
    return kept


@dataclass(slots=True)
class RequestHeaders:
    """The headers of a request, sorted by what becomes of them.

    Args:
        kept: Go on to the replica as they are.
        hops: The values of `X-Forwarded-For`, if they are believed.
        host: The value of `Host`; empty if there is none.
        request_id: The value of `X-Request-Id`, the first that is not empty; empty if there is none.
        told_proto: Whether `X-Forwarded-Proto` is among the kept.
        told_host: Whether `X-Forwarded-Host` is among the kept.
    """

    kept: list[Header] = field(default_factory=list)
    hops: list[bytes] = field(default_factory=list)
    host: bytes = b""
    request_id: bytes = b""
    told_proto: bool = False
    told_host: bool = False


def split(headers: Iterable[Header], *, trusted: bool = False) -> RequestHeaders:
    """Sort the headers of a request in one pass.

    Args:
        headers: As received.
        trusted: Whether a trusted proxy has sent them.
    """
    parts = RequestHeaders()
    named: frozenset[bytes] = frozenset()
    for header in headers:
        role = _role(header[0], trusted=trusted)
        if role is _Role.CONNECTION:
            named |= named_by(header[1])
        elif role is None or _keeps(parts, role, header[1]):
            parts.kept.append(header)
    if named:
        parts.kept = [header for header in parts.kept if header[0].lower() not in named]
    return parts


def _role(name: bytes, *, trusted: bool) -> _Role | None:
    lower = name.lower()
    if (role := _IN_REQUESTS.get(lower)) is not None:
        return role
    resembled = folded(lower)
    if is_forwarding(resembled):
        # A proxy that is trusted may have passed on its client's `X_Forwarded_For` without a look.
        return _FROM_TRUSTED.get(lower) if trusted and resembled == lower else _Role.DROPPED
    return _Role.DROPPED if resembled != lower and resembled in _SHADOWED else None


def _keeps(parts: RequestHeaders, role: _Role, value: bytes) -> bool:
    """Note what a header says, and whether it goes on as it is."""
    match role:
        case _Role.HOST:
            parts.host = parts.host or value
            return True
        case _Role.REQUEST_ID:
            if parts.request_id or not value.strip():
                return False
            parts.request_id = value
            return True
        case _Role.FORWARDED_FOR:
            parts.hops.append(value)
            return False
        case _Role.FORWARDED_PROTO:
            parts.told_proto = parts.told_proto or bool(value.strip())
            return bool(value.strip())
        case _Role.FORWARDED_HOST:
            parts.told_host = parts.told_host or bool(value.strip())
            return bool(value.strip())
    return False


def to_client(headers: Sequence[Header]) -> list[Header]:
    """The headers of an answer as the client gets them, where trailers are not passed on.

    Args:
        headers: As the replica sent them.
    """
    named: frozenset[bytes] = frozenset()
    for name, value in headers:
        if name.lower() == b"connection":
            named |= named_by(value)
    dropped = HOP_BY_HOP | named | {TRAILER}
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def named_by(connection: bytes) -> frozenset[bytes]:
    """The headers that a `Connection` header declares to be hop-by-hop (RFC 9110, section 7.6.1).

    Those that this proxy adds, or needs to read the message, are not among them.

    Args:
        connection: Its value.
    """
    value = connection.lower()
    if value in _USUAL:
        return _NONE
    named = (token.strip() for token in value.split(b","))
    return frozenset(name for name in named if name not in PROTECTED and not is_forwarding(name))
