"""A made-up replica that says what it was asked, in every framing, and a client that checks what it gets.

The last part of a request's path says how it is answered. Both sides are written without the parsers that
the lane uses.
"""

from collections import deque
from dataclasses import dataclass, field
from hashlib import sha256

from tests.unit.proxy.fast.rig import Wire

LONG = 20_000
"""Bytes of an answer that is not collected."""

ANSWERS = [b"short", b"long", b"chunks", b"hint", b"until-close", b"last", b"empty", b"early"]

Seen = tuple[bytes, bytes, bytes]
"""Method, target, body."""


def body_of(method: bytes, target: bytes, body: bytes) -> bytes:
    """What the answer to a request holds."""
    told = b"%b %b %b." % (method, target, sha256(body).hexdigest()[:8].encode())
    return told * (LONG // len(told)) if target.endswith(b"/long") else told


def take_body(headers: dict[bytes, bytes], data: bytes) -> tuple[bytes, bytes] | None:
    """The body at the beginning of some bytes, and what comes after it; None: it is not whole."""
    if b"transfer-encoding" not in headers:
        length = int(headers.get(b"content-length", b"0"))
        return None if len(data) < length else (data[:length], data[length:])
    body = b""
    while b"\r\n" in data:
        line, _, data = data.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if not size:
            while b"\r\n" in data:
                line, _, data = data.partition(b"\r\n")
                if not line:
                    return body, data
            return None
        if len(data) < size + 2:
            return None
        assert data[size : size + 2] == b"\r\n"
        body, data = body + data[:size], data[size + 2 :]
    return None


def take_head(data: bytes) -> tuple[list[bytes], dict[bytes, bytes], bytes] | None:
    """First line, headers and what comes after the head; None: it is not whole."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None
    line, *lines = head.split(b"\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (one.partition(b":") for one in lines)}
    return line.split(b" ", 2), headers, rest


@dataclass
class Replica:
    """One connection of the replica: reads what the lane writes to the wire, and has something to send.

    Args:
        wire: Its connection.
        seen: Where each request that has come whole is noted.
    """

    wire: Wire
    seen: list[Seen]
    outbox: deque[bytes] = field(default_factory=deque)
    """What is to be sent, whole messages; an empty one: the end of the connection."""
    _unread: bytes = b""
    _tunnel: bool = False
    _done: bool = False

    def read(self, data: bytes) -> None:
        """Take what the lane has written."""
        if self._tunnel:
            self.outbox.append(data)
        elif not self._done:
            self._unread += data
            while not self._done and not self._tunnel and self._one():
                pass

    def _one(self) -> bool:
        head = take_head(self._unread)
        if head is None:
            return False
        (method, target, version), headers, rest = head
        assert version == b"HTTP/1.1"
        assert target.startswith(b"/c"), "a body, or a part of a head, was taken for a request"
        if target.endswith(b"/early"):
            self.seen.append((method, target, b""))
            self._answer(method, target, b"")
            return False
        found = take_body(headers, rest)
        if found is None:
            return False
        body, self._unread = found
        self.seen.append((method, target, body))
        self._answer(method, target, body)
        return True

    def _answer(self, method: bytes, target: bytes, body: bytes) -> None:
        told = body_of(method, target, body)
        told_length = b"Content-Length: %d\r\n\r\n" % len(told)
        content = b"" if method == b"HEAD" else told
        ok = b"HTTP/1.1 200 OK\r\nX-Id: %b\r\n" % target
        match target.rpartition(b"/")[2]:
            case b"chunks":
                middle = len(content) // 2
                chunks = b"".join(
                    b"%x\r\n%b\r\n" % (len(part), part)
                    for part in (content[:middle], content[middle:])
                    if part
                )
                end = b"" if method == b"HEAD" else chunks + b"0\r\nX-Sum: 1\r\n\r\n"
                self.outbox.append(ok + b"Transfer-Encoding: chunked\r\n\r\n" + end)
            case b"hint":
                self.outbox.append(b"HTTP/1.1 103 Early Hints\r\nX-Id: %b\r\n\r\n" % target)
                self.outbox.append(ok + told_length + content)
            case b"until-close":
                # With HEAD nothing but this tells of the end.
                closes = b"Connection: close\r\n" if method == b"HEAD" else b""
                self.outbox += [ok + closes + b"\r\n" + content, b""]
                self._done = True
            case b"last" | b"early":
                self.outbox += [ok + b"Connection: close\r\n" + told_length + content, b""]
                self._done = True
            case b"empty":
                self.outbox.append(b"HTTP/1.1 204 No Content\r\nX-Id: %b\r\n\r\n" % target)
            case b"upgrade":
                self.outbox.append(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
                self._tunnel = True
                early, self._unread = self._unread, b""
                if early:
                    self.outbox.append(early)
            case _:
                self.outbox.append(ok + told_length + content)


@dataclass
class Expected:
    """One request that a client sends, and the answer that is its own."""

    method: bytes
    target: bytes
    body: bytes

    def take_answer(self, data: bytes) -> bytes:
        """Check that this is the answer at the beginning of some bytes; what comes after it."""
        status = b"100"
        while status in (b"100", b"103"):
            head = take_head(data)
            assert head is not None, data[:200]
            (_, status, _), headers, data = head
        if self.target.endswith(b"/upgrade"):
            assert status == b"101"
            return data
        assert headers[b"x-id"] == self.target
        if self.target.endswith(b"/empty"):
            assert status == b"204"
            return data
        assert status == b"200"
        if self.method == b"HEAD":
            return data
        found = take_body(headers, data)
        assert found is not None
        body, rest = found
        assert body == body_of(
            self.method, self.target, b"" if self.target.endswith(b"/early") else self.body
        )
        return rest
