"""Reading requests: what llhttp lets pass is checked once more, so that each has one reading only.

llhttp rejects most of what requests are smuggled with (RFC 9112, sections 6.3 and 11.2): both
Content-Length and Transfer-Encoding, differing lengths, bare line feeds, folded headers, spaces before a
colon, control characters. What it does not look at is looked at here, and what goes to a replica is
built anew from what was parsed.
"""

import re
from dataclasses import dataclass, field

from loadbalancer.errors import (
    BadRequestError,
    BodyTooLargeError,
    HeadTooLargeError,
    NotImplementedByUsError,
)
from loadbalancer.proxy.admin_paths import is_admin_target
from loadbalancer.proxy.fast.limits import Limits
from loadbalancer.proxy.headers import Header, first, split

ABSOLUTE_FORM = re.compile(rb"https?://(?:[^/?#@]*@)?([^/?#@]+)([/?].*)?", re.IGNORECASE | re.DOTALL)
"""RFC 9112, section 3.2.2: authority, and path with query."""

HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]+")
"""What may stand in a Host header (RFC 9110, section 7.2); an `http` URI has a host (section 4.2.1)."""


@dataclass(slots=True)
class Incoming:
    """A request as it comes in.

    Args:
        method: As sent.
        target: In origin form.
        headers: Names in lower case.
        http_1_1: Whether its version is 1.1 rather than 1.0.
        keep_alive: Whether the client wants the connection to go on.
        chunked: Whether its body comes in chunks.
        length: Content-Length, or 0.
        upgrade: Whether it asks for another protocol.
    """

    method: str
    target: bytes
    headers: list[Header]
    http_1_1: bool
    keep_alive: bool
    chunked: bool
    length: int
    upgrade: bool
    expects_continue: bool
    own: bool
    """Whether its path is the load balancer's own."""
    given_id: str
    """What its `X-Request-Id` says; empty if there is none."""
    hops: bytes
    """What its `X-Forwarded-For` says, as far as the place of the next hop."""
    outgoing: bytes
    """Its head as a replica gets it, without what differs from request to request: address, and id."""
    body: list[bytes] = field(default_factory=list)
    """What has come of the body while the request waits for its turn."""
    trailers: list[Header] = field(default_factory=list)
    complete: bool = False
    """Whether all of it has come."""


def read_head(
    method: bytes,
    target: bytes,
    version: str,
    headers: list[Header],
    limits: Limits,
    *,
    scheme: bytes,
    keep_alive: bool,
    upgrade: bool,
) -> Incoming:
    """Check a head that the parser has let pass.

    Args:
        method: As parsed.
        target: As parsed.
        version: Such as `1.1`.
        headers: As parsed.
        limits: Bounds.
        scheme: `http` or `https`.
        keep_alive: What the parser says of the connection.
        upgrade: Whether the parser saw a request for another protocol.

    Raises:
        BadRequestError: It is no request that has one meaning.
        HeadTooLargeError: It is too large.
        BodyTooLargeError: It announces a body that is too large.
        NotImplementedByUsError: It wants something that a load balancer does not do.
    """
    if version not in ("1.1", "1.0"):
        raise BadRequestError(f"HTTP/{version} is not spoken here")
    if method == b"CONNECT":
        raise NotImplementedByUsError("CONNECT is for forward proxies, which this is not")
    if len(target) > limits.target:
        raise HeadTooLargeError(f"the request target is longer than {limits.target} bytes", 414)
    http_1_1 = version == "1.1"
    host: bytes | None = None
    length = 0
    chunked = expects = False
    read: list[Header] = []
    for name, value in headers:
        name = name.lower()
        value = value.strip(b" \t")
        if name == b"host":
            if host is not None:
                raise BadRequestError("there are two Host headers")
            host = value
            if not HOST.fullmatch(host):
                raise BadRequestError("the Host header is no host")
        elif name == b"content-length":
            length = int(value)
            if limits.body and length > limits.body:
                raise BodyTooLargeError(limits.body)
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked" or chunked:
                raise NotImplementedByUsError("the only Transfer-Encoding understood here is chunked")
            if not http_1_1:
                raise BadRequestError("HTTP/1.0 knows no Transfer-Encoding")
            chunked = True
        elif name == b"expect":
            expects = value.lower() == b"100-continue" and http_1_1
        read.append((name, value))
    if host is None and http_1_1:
        raise BadRequestError("the Host header is missing")
    if not target.startswith(b"/"):
        target, authority = _origin_form(target)
        read = [(b"host", authority), *((n, v) for n, v in read if n != b"host")]
    if b"#" in target:
        raise BadRequestError("a request target has no fragment")
    if upgrade and (chunked or length):
        raise BadRequestError("a request for another protocol has no body")
    parts = split(read)
    lines = [b"%b %b HTTP/1.1\r\n" % (method, target)]
    lines += [b"%b: %b\r\n" % header for header in parts.kept]
    lines.append(b"x-forwarded-proto: %b\r\n" % scheme)
    if parts.host:
        lines.append(b"x-forwarded-host: %b\r\n" % parts.host)
    if chunked:
        lines.append(b"transfer-encoding: chunked\r\n")
    if upgrade:
        lines.append(b"connection: upgrade\r\nupgrade: %b\r\n" % (first(read, b"upgrade") or b""))
    return Incoming(
        method.decode("ascii"),
        target,
        read,
        http_1_1,
        keep_alive,
        chunked,
        length,
        upgrade,
        expects,
        own=is_admin_target(target),
        given_id=parts.request_id.decode("latin-1"),
        hops=b"".join(hop + b", " for hop in parts.hops),
        outgoing=b"".join(lines),
    )


def _origin_form(target: bytes) -> tuple[bytes, bytes]:
    """An absolute target, whose authority overrides Host (RFC 9112, section 3.2.2)."""
    match = ABSOLUTE_FORM.fullmatch(target)
    if match is None:
        shown = target[:80].decode("latin-1")
        raise BadRequestError(f"the request target '{shown}' is neither a path nor an absolute URL")
    path = match[2] or b"/"
    return path if path.startswith(b"/") else b"/" + path, match[1]
