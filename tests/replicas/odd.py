"""A replica for tests that answers each path in its own way, also in ways that break HTTP.

It writes bytes to plain streams, so that no library corrects them. The path of a request chooses the answer;
an unknown path gets a description of the request in JSON. `/log` lists how earlier requests ended.
"""

import asyncio
import gzip
import hashlib
import json
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

SERVERS: list[asyncio.Server] = []
"""The one server, once it runs."""

LOG: list[str] = []
"""How requests began and ended, for `/log`."""

TRAILERS_SEEN: list[bytes] = []
"""Trailers of the last chunked body."""

CONNECTIONS = 0
"""Number of connections until now."""

CLOSES_AFTER = 0.2
"""Seconds without a request after which a connection closes, if its last request was for `/closing`."""

TRAILERS = b"5\r\nhello\r\n0\r\nx-checksum: 5d41\r\n\r\n"


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> tuple[int, str]:
    """Read a body in pieces, and return its length and its digest."""
    digest, length = hashlib.sha256(), 0
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readline()).strip(), 16):
            digest.update(await reader.readexactly(size))
            length += size
            await reader.readexactly(2)
        TRAILERS_SEEN.clear()
        while (line := await reader.readline()) != b"\r\n":
            TRAILERS_SEEN.append(line)
    else:
        left = int(headers.get("content-length", "0"))
        while left:
            piece = await reader.read(min(left, 1 << 18))
            if not piece:
                raise EOFError
            digest.update(piece)
            length += len(piece)
            left -= len(piece)
    return length, digest.hexdigest()


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """The bytes of an answer with a correct `Content-Length`."""
    head = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode("latin-1") + body


WRONG = {
    "/garbage": b"\x00\x01 this is no HTTP\r\n\r\n",
    "/half": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this",
    "/half-head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "/half-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nff\r\nhal",
    "/nothing": b"",
}
"""Paths with a broken or an incomplete answer, after which the connection closes."""

PLAIN = {
    "/cookies": answer(b"ok", "200 OK", "Set-Cookie: a=1; Path=/", "Set-Cookie: b=2", "X-A: 1", "x-a: 2"),
    "/gzip": answer(gzip.compress(b"hello" * 100, mtime=0), "200 OK", "Content-Encoding: gzip"),
    "/redirect": answer(b"", "302 Found", "Location: http://elsewhere.example/there?a=1"),
    "/teapot": answer(b"short and stout", "418 I'm a teapot"),
    "/204": b"HTTP/1.1 204 No Content\r\nX-Empty: yes\r\n\r\n",
    "/304": b'HTTP/1.1 304 Not Modified\r\nETag: "abc"\r\n\r\n',
    "/hops": answer(
        b"ok", "200 OK", "Connection: X-Hop, keep-alive", "X-Hop: 1", "Keep-Alive: timeout=5", "X-End: 2"
    ),
    "/own": answer(b"ok", "200 OK", "Server: odd/1.0", "Date: Thu, 01 Jan 1970 00:00:00 GMT", "Via: 1.1 odd"),
    "/trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-checksum\r\n\r\n" + TRAILERS,
    "/early-hints": b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + answer(b"late"),
    "/double": answer(b"one") + answer(b"two, to nobody"),
    "/503": answer(b"busy", "503 Service Unavailable", "Retry-After: 7"),
}
"""Paths with a fixed answer."""


@dataclass(frozen=True)
class Request:
    """A request, and the number of its connection.

    Args:
        method: Method.
        target: Target as it was received.
        path: Path of the target.
        query: First value of each parameter of the query.
        fields: Headers as they were received.
        headers: Value of each header by its name in lower case.
        connection: Number of the connection.
    """

    method: str
    target: str
    path: str
    query: dict[str, str]
    fields: list[tuple[str, str]]
    headers: dict[str, str]
    connection: int

    @classmethod
    def parse(cls, head: bytes, connection: int) -> "Request":
        line, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, target, _ = line.split(" ")
        fields = [(name, value.strip()) for name, value in (line.split(":", 1) for line in lines)]
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        headers = {name.lower(): value for name, value in fields}
        return cls(method, target, url.path, query, fields, headers, connection)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection."""
    global CONNECTIONS
    CONNECTIONS += 1
    connection = CONNECTIONS
    patience = None
    try:
        while True:
            async with asyncio.timeout(patience):
                head = await reader.readuntil(b"\r\n\r\n")
            request = Request.parse(head, connection)
            if not await exchange(request, reader, writer):
                return
            patience = CLOSES_AFTER if request.target == "/closing" else None
    except (EOFError, ConnectionError, ValueError, TimeoutError):
        pass
    finally:
        writer.close()


async def exchange(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answer one request, and return whether the connection stays open."""
    path = request.path
    if path == "/early":
        return await answer_early(request, reader, writer)
    try:
        length, digest = await read_body(reader, request.headers)
    except EOFError:
        LOG.append(f"{path} broke off")
        raise
    if path in CLOSING:
        await CLOSING[path](request, reader, writer)
        return False
    if path == "/download":
        await download(request, writer)
        return True
    if path in WRONG:
        writer.write(WRONG[path])
        return False
    if path == "/maybe" and "DIE" in os.environ:
        return False
    if path == "/half-on" and os.environ["HOSTNAME"] == request.query["name"]:
        writer.write(WRONG["/half"])
        return False
    writer.write(await kept_answer(request, length, digest))
    await writer.drain()
    return True


async def kept_answer(request: Request, length: int, digest: str) -> bytes:
    """The answer to a request whose connection stays open.

    Args:
        request: The request.
        length: Length of its body.
        digest: SHA-256 of its body, in hexadecimal.
    """
    path = request.path
    if path in PLAIN:
        head, end, body = PLAIN[path].partition(b"\r\n\r\n")
        return head + end + (b"" if request.method == "HEAD" else body)
    if path == "/log":
        return answer(json.dumps(LOG).encode())
    if path == "/trailing":
        return answer(b"".join(TRAILERS_SEEN))
    if path == "/maybe" and "FAIL" in os.environ:
        return answer(b"no", "500 Internal Server Error")
    if path == "/narrow":
        narrow_backlog()
        return answer(b"")
    if path == "/slow":
        await asyncio.sleep(float(request.query["seconds"]))
        return answer(b"at last")
    facts = {
        "method": request.method, "target": request.target, "headers": request.fields,
        "connection": request.connection, "length": length, "sha256": digest,
        "hostname": os.environ["HOSTNAME"],
    }  # fmt: skip
    body = b"" if request.method == "HEAD" else json.dumps(facts).encode()
    return answer(body, "200 OK", "Content-Type: application/json")


def narrow_backlog() -> None:
    """Make the kernel keep only one connection that waits to be accepted."""
    for listener in SERVERS[0].sockets:
        with socket.socket(fileno=os.dup(listener.fileno())) as copy:
            copy.listen(0)


async def answer_early(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answer before the body of the request is read; then read it, and close the connection."""
    writer.write(answer(b"too large", "413 Content Too Large", "Connection: close"))
    await writer.drain()
    await read_body(reader, request.headers)
    return False


async def until_close(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a body that ends with the connection."""
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end")


async def never_end(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send no answer, half an answer or one event, until the other side closes; log both moments."""
    path = request.path
    if path == "/stall":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbeginning")
    if path == "/events":
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        event = b"data: tick\n\n"
        writer.write(b"%x\r\n%s\r\n" % (len(event), event))
    await writer.drain()
    LOG.append(f"{path} begun")
    if await reader.read(1) == b"":
        LOG.append(f"{path} left alone {request.query.get('id', '')}".rstrip())


async def upgrade(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Switch to a protocol that echoes bytes, and add a few at the end."""
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write(b", and goodbye")


async def download(request: Request, writer: asyncio.StreamWriter) -> None:
    """Send a large body."""
    length = int(request.query["bytes"])
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
    piece = bytes(1 << 18)
    while length:
        writer.write(piece[: min(length, len(piece))])
        length -= min(length, len(piece))
        await writer.drain()


CLOSING: dict[str, Callable[[Request, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]] = {
    "/until-close": until_close,
    "/hang": never_end,
    "/stall": never_end,
    "/events": never_end,
    "/upgrade": upgrade,
}
"""Paths whose answer ends with the connection."""


async def main() -> None:
    server = await asyncio.start_server(
        serve, os.environ.get("HOST", "127.0.0.1"), int(os.environ["PORT"]), limit=1 << 20
    )
    SERVERS.append(server)
    await server.serve_forever()


asyncio.run(main())
