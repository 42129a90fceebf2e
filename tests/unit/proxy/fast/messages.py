"""Heads as browsers and tools send them, and messages read by an independent reading of llhttp's events."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httptools
from hypothesis import strategies as st

from tests.fuzzing import ANSWERS, REQUESTS

Headers = list[tuple[bytes, bytes]]


@dataclass
class Message:
    """One message as its recipient reads it."""

    first: tuple[Any, ...] = ()
    """Method and target, or the status."""
    headers: Headers = field(default_factory=list)
    """Sorted, names in lower case."""
    body: bytes = b""
    whole: bool = False


class _Events:
    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.parser: Any
        self.target = b""

    def on_message_begin(self) -> None:
        self.messages.append(Message())
        self.target = b""

    def on_url(self, part: bytes) -> None:
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self.messages[-1].headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        if isinstance(self.parser, httptools.HttpRequestParser):
            what: tuple[Any, ...] = (self.parser.get_method(), self.target)
        else:
            what = (self.parser.get_status_code(),)
        self.messages[-1].first = (*what, self.parser.get_http_version())

    def on_body(self, part: bytes) -> None:
        self.messages[-1].body += part

    def on_message_complete(self) -> None:
        self.messages[-1].headers.sort()
        self.messages[-1].whole = True


def read_messages(data: bytes, kind: type[Any]) -> list[Message]:
    """The messages that a recipient finds in some bytes, which must be HTTP.

    Args:
        data: The bytes.
        kind: `httptools.HttpRequestParser` or `httptools.HttpResponseParser`.
    """
    events = _Events()
    events.parser = kind(events)
    with suppress(httptools.HttpParserUpgrade):
        events.parser.feed_data(data)
    return events.messages


CHROME = (
    b"Host: shop.example\r\nConnection: keep-alive\r\nsec-ch-ua: \"Chromium\";v=\"130\"\r\n"
    b"sec-ch-ua-mobile: ?0\r\nsec-ch-ua-platform: \"Linux\"\r\nUpgrade-Insecure-Requests: 1\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0\r\n"
    b"Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\nSec-Fetch-Site: none\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: de-DE,de;q=0.9\r\n"
    b"Cookie: sid=abc123; theme=dark; _ga=GA1.1.1234; host: x\r\n"
)  # fmt: skip
CURL = b"Host: x:8080\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n"
FIREFOX = (
    b"Host: [::1]:5000\r\nUser-Agent: Mozilla/5.0 (X11; rv:131.0) Firefox/131.0\r\nAccept: */*\r\n"
    b"Referer: http://shop.example/?x=\r\nOrigin: null\r\nConnection: keep-alive\r\nTE: trailers\r\n"
)

BROWSERS = [
    *(b"GET /a/b?sid=1&x=%2F HTTP/1.1\r\n" + lines + b"\r\n" for lines in (CHROME, CURL, FIREFOX)),
    b"POST /p HTTP/1.1\r\n" + CHROME + b"Content-Length: 5\r\nContent-Type: text/plain\r\n\r\nhello",
    b"DELETE / HTTP/1.1\r\n" + CURL + b"\r\n",
]

LINES = [
    b"Host: y",
    b"host: x ",
    b"Content-Length: 5",
    b"content-length: 0",
    b"Content_Length: 5",
    b"Content-Length: 05",
    b"Transfer-Encoding: chunked",
    b"Connection: close",
    b"connection: Keep-Alive",
    b"Connection: X-Hop, Host, X-Request-Id, Content-Length, X-Forwarded-For",
    b"X-Hop: 1",
    b"Keep-Alive: timeout=5",
    b"Proxy-Connection: keep-alive",
    b"Proxy-Authorization: Basic eA==",
    b"HTTP2-Settings: AAM",
    b"Upgrade: h2c",
    b"TE: trailers",
    b"Te: gzip",
    b"Trailer: X-Sum",
    b"Expect: 100-continue",
    b"X-Request-Id: given",
    b"X-Request-ID: given 2 ",
    b"x-request-id:",
    b"X_Request_Id: shadow",
    b"X-Forwarded-For: 10.0.0.1, 10.0.0.2",
    b"x-forwarded-for: 10.0.0.3",
    b"X_Forwarded_For: 10.0.0.4",
    b"X-Forwarded_For: 10.0.0.4",
    b"X.Forwarded.For: 10.0.0.4",
    b"X-Forwarded-Proto: https",
    b"X-Forwarded-Host: evil",
    b"X-Forwarded-Port: 1",
    b"X-Forwarded-Prefix: /p",
    b"X-Real-IP: 10.0.0.5",
    b"X-Real-Ip: 10.0.0.5",
    b"X_REAL_IP: 10.0.0.5",
    b"Forwarded: for=10.0.0.6",
    b"FORWARDED: for=10.0.0.6",
    b"Cookie: sid=from-another; a=b",
    b"cookie: sid=; x=1",
    b"Cookie: a=Connection: close",
    b"X-Pad: \tx\t ",
    b"X-Latin: \xe4",
    b"X-User: u1",
    b"x-user: ",
    b"X-Empty:",
]
"""Lines that mean something to a proxy, or look like it."""

USUAL_LINES = [line for line in LINES if line.startswith((b"X-", b"x-", b"Keep", b"Proxy", b"Cook", b"Forw"))]
"""Those of them that need no decision, most of the time."""

TARGETS = [
    b"/",
    b"/a?sid=1",
    b"/a?b&sid=%31&sid=2",
    b"/rep",
    b"/rep?x",
    b"/report",
    b"/lb/health",
    b"/lbx",
    b"/%72ep",
    b"/l%62/health",
    b"/%6cb",
    b"/%25/rm",
    b"/rm%3f",
    b"//rep",
    b"/a#b",
    b"/\xc3\xa4",
    b"*",
    b"http://h/x",
    b"/a%zz%",
]

BODIES = [
    *(b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    *(b"\nx-user: evil\r\n", b"\r\nX-Request-Id: evil\r\n", b"\r\nKeep-Alive: timeout=5\r\n"),
]

METHODS = [b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"PATCH", b"PROPFIND", b"TRACE", b"FOO"]


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A request as a browser or a tool sends it, with a few lines more, and perhaps a body.

    Half of them are usual, so that they go the quick way.
    """
    usual = draw(st.booleans())
    base = draw(st.sampled_from([CHROME, CURL] if usual else [CHROME, CURL, FIREFOX])).split(b"\r\n")[:-1]
    more = draw(st.lists(st.sampled_from(USUAL_LINES if usual else LINES), max_size=3))
    method = draw(st.sampled_from(METHODS[:3] if usual else METHODS))
    target = draw(st.sampled_from(TARGETS[:3] if usual else TARGETS))
    body = draw(st.sampled_from(BODIES))
    if usual and (body or method != b"GET"):
        more.append(b"Content-Length: %d" % len(body))
    lines = draw(st.permutations(base + more))
    return b"\r\n".join([b"%b %b HTTP/1.1" % (method, target), *lines, b"", b""]) + body


ANSWER_LINES = [
    b"Content-Length: 5",
    b"content-length: 0",
    b"CONTENT-LENGTH: 5",
    b"Transfer-Encoding: chunked",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: X-Hop, Date",
    b"X-Hop: 1",
    b"Keep-Alive: timeout=5",
    b"Proxy-Connection: x",
    b"Trailer: X-Sum",
    b"Upgrade: h2c",
    b"Date: Thu, 01 Jan 1970 00:00:00 GMT",
    b"date: x",
    b"Server: odd",
    b"Set-Cookie: a=Content-Length: 5",
    b"Content-Type: text/event-stream",
    b"Content-Type: text/html",
    b"X-Pad: \t x ",
    b"X-Latin: \xe4",
]

STATUSES = [
    b"200 OK",
    b"404 Not Found",
    b"204 No Content",
    b"304 Not Modified",
    b"500 Oh",
    b"299 ",
    b"103 Hint",
]
AFTER = [b"hello", b"", b"5\r\nhello\r\n0\r\n\r\n", b"hell", b"hello!", b"0\r\n\r\n"]


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """An answer with a few lines that mean something to a proxy. Half of them are usual."""
    usual = draw(st.booleans())
    lines = draw(st.lists(st.sampled_from(ANSWER_LINES[5 if usual else 0 :]), max_size=3))
    version = draw(st.sampled_from([b"HTTP/1.1 "] * 4 + [b"HTTP/1.0 "]))
    status = draw(st.sampled_from(STATUSES))
    body = draw(st.sampled_from(AFTER))
    if usual:
        lines.insert(draw(st.integers(0, len(lines))), b"Content-Length: %d" % len(body))
    return b"\r\n".join([version + status, *lines, b"", b""]) + body


ALL_REQUESTS = REQUESTS + BROWSERS
ALL_ANSWERS = ANSWERS
