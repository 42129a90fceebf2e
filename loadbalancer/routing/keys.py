"""What a request is hashed on.

Both lanes of the proxy take the key by the same rule, from the plain parts of a request. A request
that lacks what the rule wants (no such cookie, say, or an empty one) is hashed on its request id, and
so goes anywhere: one fixed key for all of them would send them all to one replica. Nothing here
raises on odd bytes: a key is only hashed, never shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import unquote_to_bytes

Headers = Sequence[tuple[bytes, bytes]]
"""The headers of a request, names in lower case."""

_Source = Literal["request-id", "client-ip", "path", "header", "cookie", "query"]


@dataclass(frozen=True, slots=True)
class KeyRule:
    """Takes the key of a request: made by `KeyRule.parse`.

    Args:
        source: Which part of a request the key is.
        name: Name of the header (in lower case), cookie or query parameter; else empty.
    """

    source: _Source
    name: bytes = b""

    @classmethod
    def parse(cls, text: str) -> "KeyRule":
        """Read the option `--hash-on`.

        Args:
            text: `request-id`, `client-ip`, `path`, `header:NAME`, `cookie:NAME` or `query:NAME`.

        Raises:
            ValueError: It is none of them.
        """
        word, colon, name = text.partition(":")
        named = word in ("header", "cookie", "query")
        for source in get_args(_Source):
            if source == word and bool(colon) == bool(name) == named:
                return cls(source, (name.lower() if word == "header" else name).encode())
        raise ValueError(
            f"{text!r} is not request-id, client-ip, path, header:NAME, cookie:NAME or query:NAME"
        )

    def key(self, headers: Headers, raw_path: bytes, query: bytes, client: str, request_id: str) -> str:
        """The key of a request.

        Args:
            headers: Its headers, names in lower case; of several that match, the first that is not empty.
            raw_path: Its path as sent, without the query.
            query: Its query as sent, without the question mark.
            client: Address of the client.
            request_id: Its id: what `X-Request-Id` says, or a random one.
        """
        match self.source:
            case "request-id":
                return request_id
            case "client-ip":
                return client or request_id
            case "path":
                return raw_path.decode("latin-1") or request_id
            case "header":
                value = _header(headers, self.name)
            case "cookie":
                value = _cookie(headers, self.name)
            case "query":
                value = _parameter(query, self.name)
        return value.decode("latin-1") or request_id


def _header(headers: Headers, wanted: bytes) -> bytes:
    for name, value in headers:
        if name == wanted and (value := value.strip()):
            return value
    return b""


def _cookie(headers: Headers, wanted: bytes) -> bytes:
    """The value of a cookie, as sent (RFC 6265, section 5.4); HTTP/2 may send several Cookie headers."""
    for name, value in headers:
        if name == b"cookie" and wanted in value:
            for pair in value.split(b";"):
                cookie, _, content = pair.partition(b"=")
                if cookie.strip() == wanted and (content := content.strip()):
                    return content
    return b""


def _parameter(query: bytes, wanted: bytes) -> bytes:
    """The value of a query parameter, decoded, so that the same value spelled otherwise is the same key."""
    for pair in query.split(b"&"):
        name, _, content = pair.partition(b"=")
        if content and (name == wanted or _decode(name) == wanted):
            return _decode(content)
    return b""


def _decode(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" "))
