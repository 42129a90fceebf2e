"""What happens to headers on their way through: the rules that every lane shares.

Hop-by-hop headers concern one connection and end with it; end-to-end headers pass untouched, in their
order, repeated ones apart. Names are compared in lower case, as the parsers deliver them.
"""

from collections.abc import Iterable, Sequence

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

_REPLACED = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"})

_ANSWERED = frozenset({b"expect"})
"""`Expect: 100-continue` is answered by the server that the client speaks to."""


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
    dropped = HOP_BY_HOP | _REPLACED | _ANSWERED | _named_by_connection(headers)
    kept = [(name, value) for name, value in headers if name.lower() not in dropped]
    hops = [value for name, value in headers if name.lower() == b"x-forwarded-for"]
    if client:
        hops.append(client.encode("ascii", "replace"))
    if hops:
        kept.append((b"x-forwarded-for", b", ".join(hops)))
    kept.append((b"x-forwarded-proto", {"ws": "http", "wss": "https"}.get(scheme, scheme).encode()))
    if host := first(headers, b"host"):
        kept.append((b"x-forwarded-host", host))
    if not first(headers, b"x-request-id"):
        kept.append((b"x-request-id", request_id.encode()))
    return kept


def to_client(headers: Sequence[Header]) -> list[Header]:
    """The headers of an answer as the client gets them: all but the hop-by-hop ones.

    Args:
        headers: As the replica sent them.
    """
    dropped = HOP_BY_HOP | _named_by_connection(headers)
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def _named_by_connection(headers: Iterable[Header]) -> frozenset[bytes]:
    """The headers that `Connection` declares to be hop-by-hop (RFC 9110, section 7.6.1)."""
    return frozenset(
        token.strip().lower()
        for name, value in headers
        if name.lower() == b"connection"
        for token in value.split(b",")
    ).difference(_PROTECTED)
