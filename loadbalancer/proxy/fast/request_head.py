"""Heads of requests, read one way only: llhttp validates the bytes, and this module checks what llhttp lets
pass.

llhttp rejects most ways to smuggle a request (RFC 9112, sections 6.3 and 11.2): Content-Length beside
Transfer-Encoding, two lengths, bare line feeds, folded headers, spaces before a colon, control characters.
`read_head` checks the rest, and writes the head that a replica gets. `quick` reads the usual heads faster,
and must make the same of them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import httptools

from loadbalancer.errors import (
    BadRequestError,
    BodyTooLargeError,
    HeadTooLargeError,
    NotImplementedByUsError,
)
from loadbalancer.proxy.admin_paths import is_admin_target
from loadbalancer.proxy.fast.bodies import Framing
from loadbalancer.proxy.fast.limits import Limits
from loadbalancer.proxy.fast.peer import Peer
from loadbalancer.proxy.forwarding import Identity
from loadbalancer.proxy.headers import TRAILER, Header, to_replica
from loadbalancer.proxy.request import RequestHead, given_id

ABSOLUTE_FORM = re.compile(rb"https?://(?:[^/?#@]*@)?([^/?#@]+)([/?].*)?", re.IGNORECASE | re.DOTALL)
"""RFC 9112, section 3.2.2: authority, and path with query."""

HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]+")
"""The characters of a Host header (RFC 9110, section 7.2); an `http` URI has a host (section 4.2.1)."""

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A method, among others (RFC 9110, section 5.6.2)."""


@dataclass(slots=True)
class Request:
    """The head of a request.

    Args:
        method: As sent.
        target: In origin form, or `*`.
        headers: As sent, names in lower case.
        identity: Who it comes from.
        http_1_1: Whether its version is 1.1 rather than 1.0.
        keep_alive: Whether the client wants the connection to go on.
        framing: What shows the end of its body.
        length: Content-Length, or 0.
        upgrade: The other protocols that it asks for; empty: none.
        expects_continue: Whether the client waits for a 100 before it sends the body.
        admin: Whether the admin application answers for its path.
        request_id: What `X-Request-Id` says, or a random one.
        outgoing: Its head as a replica gets it.
    """

    method: str
    target: bytes
    headers: list[Header]
    identity: Identity
    http_1_1: bool
    keep_alive: bool
    framing: Framing
    length: int
    upgrade: bytes
    expects_continue: bool
    admin: bool
    request_id: str
    outgoing: bytes

    def describe(self) -> RequestHead:
        """The request as keys and logs want it."""
        path, _, query = self.target.partition(b"?")
        who = self.identity
        return RequestHead(
            self.method, path, query, self.headers, who.client, who.scheme, self.request_id, who.via
        )


class _Collector:
    """What llhttp calls while it reads a head."""

    __slots__ = ("headers", "keep_alive", "parser", "target", "upgrade")

    def __init__(self) -> None:
        self.headers: list[Header] = []
        self.target = b""
        self.keep_alive = self.upgrade = False
        self.parser = httptools.HttpRequestParser(self)

    def on_url(self, part: bytes) -> None:
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.keep_alive = self.parser.should_keep_alive()
        self.upgrade = self.parser.should_upgrade()


def not_http(error: httptools.HttpParserError) -> BadRequestError:
    """The answer to bytes that llhttp rejects."""
    return BadRequestError(f"this is no HTTP/1.1 request: {error}")


def read_head(head: bytes, peer: Peer, limits: Limits, make_id: Callable[[], str]) -> Request:
    """Read a whole head.

    Args:
        head: From the first byte of the request line to the empty line.
        peer: Who sent it.
        limits: Bounds.
        make_id: Makes an id for a request that brings none.

    Raises:
        BadRequestError: It is no request, or has more than one meaning.
        HeadTooLargeError: It is too large.
        BodyTooLargeError: It announces a body that is too large.
        NotImplementedByUsError: It wants something that a load balancer does not do.
    """
    read = _Collector()
    parser = read.parser
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserInvalidMethodError as error:
        raise _unknown_method(head) or not_http(error) from None
    except httptools.HttpParserError as error:
        raise not_http(error) from None
    finally:
        del read.parser  # the two refer to each other
    method, version = parser.get_method(), parser.get_http_version()
    if version not in ("1.1", "1.0"):
        raise BadRequestError(f"HTTP/{version} is not spoken here")
    if method == b"CONNECT":
        raise NotImplementedByUsError("CONNECT is for forward proxies, which this is not")
    if len(read.target) > limits.target:
        raise HeadTooLargeError(f"the request target is longer than {limits.target} bytes", 414)
    if len(read.headers) > limits.headers:
        raise HeadTooLargeError(f"there are more than {limits.headers} headers")
    return _Checked(method, read, version == "1.1", peer, limits).request(make_id)


def _unknown_method(head: bytes) -> NotImplementedByUsError | None:
    """RFC 9110, section 9.1: 501 for a method that is not known here, if it is one."""
    method = head.partition(b" ")[0]
    if TOKEN.fullmatch(method) and method.upper() == method:
        return NotImplementedByUsError(f"the method {method[:40].decode()} is not known here")
    return None


class _Checked:
    """A head that llhttp has let pass, and what the rest of the checks find in it."""

    def __init__(self, method: bytes, read: _Collector, http_1_1: bool, peer: Peer, limits: Limits) -> None:
        self.method = method
        self.http_1_1 = http_1_1
        self.peer = peer
        self.keep_alive = read.keep_alive
        self.headers = [(name.lower(), value) for name, value in read.headers]
        self.sent = read.headers
        self.host: bytes | None = None
        self.length = 0
        self.framing = Framing.NONE
        self.expects_continue = False
        self.upgrade = b""
        self._limits = limits
        for name, value in self.headers:
            self._check(name, value)
        if self.host is None and http_1_1:
            raise BadRequestError("the Host header is missing")
        self.target = self._origin_form(read.target)
        if read.upgrade and self.framing is Framing.NONE and http_1_1:
            self.upgrade = self._protocols()

    def _check(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            if self.host is not None:
                raise BadRequestError("there are two Host headers")
            if not HOST.fullmatch(value):
                raise BadRequestError("the Host header is no host")
            self.host = value
        elif name == b"content-length":
            self.length = int(value)
            if self.length:
                self.framing = Framing.LENGTH
            if self._limits.body and self.length > self._limits.body:
                raise BodyTooLargeError(self._limits.body)
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked" or self.framing is Framing.CHUNKED:
                raise NotImplementedByUsError("the only Transfer-Encoding understood here is chunked")
            if not self.http_1_1:
                raise BadRequestError("HTTP/1.0 knows no Transfer-Encoding")
            self.framing = Framing.CHUNKED
        elif name == b"expect":
            self.expects_continue = value.lower() == b"100-continue" and self.http_1_1

    def _origin_form(self, target: bytes) -> bytes:
        """The target as a replica gets it; the authority of an absolute one overrides Host."""
        if not target.startswith(b"/") and not (target == b"*" and self.method == b"OPTIONS"):
            match = ABSOLUTE_FORM.fullmatch(target)
            if match is None or not HOST.fullmatch(match[1]):
                shown = target[:80].decode("latin-1")
                raise BadRequestError(f"the request target '{shown}' is neither a path nor an absolute URL")
            self.host = match[1]
            target = match[2] or (b"*" if self.method == b"OPTIONS" else b"/")
            if target.startswith(b"?"):
                target = b"/" + target
        if b"#" in target:
            raise BadRequestError("a request target has no fragment")
        return target

    def _protocols(self) -> bytes:
        """The other protocols that it asks for, without HTTP/2 (RFC 9113, section 3.1: obsolete)."""
        asked = b",".join(value for name, value in self.headers if name == b"upgrade").split(b",")
        return b", ".join(word.strip() for word in asked if word.strip().lower() not in (b"h2c", b"h2", b""))

    def _of_this_connection(self) -> list[Header]:
        """The headers that concern the connection to the replica."""
        headers: list[Header] = []
        options: list[bytes] = []
        if self.framing is Framing.CHUNKED:
            headers += [(name, value) for name, value in self.headers if name == TRAILER]
            headers.append((b"transfer-encoding", b"chunked"))
        if self.http_1_1 and takes_trailers(self.headers):
            headers.append((b"te", b"trailers"))
            options.append(b"te")
        if self.upgrade:
            headers.append((b"upgrade", self.upgrade))
            options.append(b"upgrade")
        if options:
            headers.append((b"connection", b", ".join(options)))
        return headers

    def request(self, make_id: Callable[[], str]) -> Request:
        """The request, with the head that a replica gets."""
        peer = self.peer
        sent = [header for header in self.sent if header[0].lower() != b"host"]
        sent.insert(0, (b"Host", self.host or peer.host()))
        request_id = given_id(self.headers) or make_id()
        who = peer.identify(self.headers)
        headers = to_replica(sent, client=who.client, scheme=who.scheme, request_id=request_id, via=who.via)
        headers += self._of_this_connection()
        expects_continue = self.expects_continue and self.framing is not Framing.NONE
        if expects_continue:
            headers.append((b"expect", b"100-continue"))
        lines = [b"%b %b HTTP/1.1\r\n" % (self.method, self.target)]
        lines += [b"%b: %b\r\n" % header for header in headers]
        lines.append(b"\r\n")
        return Request(
            self.method.decode("ascii"),
            self.target,
            self.headers,
            who,
            self.http_1_1,
            self.keep_alive,
            self.framing,
            self.length,
            self.upgrade,
            expects_continue,
            is_admin_target(self.target),
            request_id,
            b"".join(lines),
        )


def takes_trailers(headers: list[Header]) -> bool:
    """Whether a client says that it takes trailers, and that it says so for this connection alone.

    (RFC 9110, sections 7.6.1 and 10.1.4.)

    Args:
        headers: Of the request, names in lower case.
    """
    return b"trailers" in _words(headers, b"te") and b"te" in _words(headers, b"connection")


def _words(headers: list[Header], wanted: bytes) -> list[bytes]:
    """The words of a header that is a list, in lower case."""
    values = b",".join(value for name, value in headers if name == wanted)
    return [word.strip().lower() for word in values.split(b",")]
