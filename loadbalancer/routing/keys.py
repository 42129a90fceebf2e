"""The key of a request: the text that consistent hashing hashes, by the option `--hash-on`.

Both lanes use the same rule. A request without the part that the rule names (for example without the cookie)
has its request id as key. So these requests are spread over all replicas; one fixed key would send all of
them to one replica. Any bytes make a key, because a key is hashed and never shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.parse import unquote_to_bytes

Headers = Sequence[tuple[bytes, bytes]]
"""The headers of a request, with names in lower case."""

_Source = Literal["request-id", "client-ip", "path", "header", "cookie", "query"]


@dataclass(frozen=True, slots=True)
class KeyRule:
    """Extracts the key of a request. `KeyRule.parse` makes a rule.

    Args:
        source: The part of a request that is the key.
        name: The name of the header (in lower case), cookie or query parameter; empty for other sources.
    """

    source: _Source
    name: bytes = b""

    @classmethod
    def parse(cls, text: str) -> "KeyRule":
        """Read the option `--hash-on`.

        Args:
            text: `request-id`, `client-ip`, `path`, `header:NAME`, `cookie:NAME` or `query:NAME`.

        Raises:
            ValueError: The text has none of these forms.
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
        """Extract the key of a request. The first value that matches and is not empty counts.

        Args:
            headers: The headers, with names in lower case.
            raw_path: The path as sent, without the query.
            query: The query as sent, without the question mark.
            client: The address of the client.
            request_id: The value of `X-Request-Id`, or a random id.
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
    """Find the value of a cookie (RFC 6265, section 5.4). HTTP/2 may send several Cookie headers."""
    for name, value in headers:
        if name == b"cookie" and wanted in value:
            for pair in value.split(b";"):
                cookie, _, content = pair.partition(b"=")
                if cookie.strip() == wanted and (content := content.strip()):
                    return content
    return b""


def _parameter(query: bytes, wanted: bytes) -> bytes:
    """Find the value of a query parameter. It is decoded, so that all encodings of a value are one key."""
    for pair in query.split(b"&"):
        name, _, content = pair.partition(b"=")
        if content and (name == wanted or _decode(name) == wanted):
            return _decode(content)
    return b""


def _decode(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" "))
