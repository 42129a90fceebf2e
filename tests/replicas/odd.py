"""A replica that does what it is asked to, also what no server should: for tests of the lanes.

Written on plain sockets, so that nothing between it and the wire corrects it. What it does is named by
the path; `/log` tells what has become of earlier requests.
"""

import asyncio
import gzip
import hashlib
import json
import os
import socket
from urllib.parse import parse_qs, urlsplit

SERVERS: list[asyncio.Server] = []
LOG: list[str] = []
TRAILERS_SEEN: list[bytes] = []
"""The trailers of the last body in chunks."""
CONNECTIONS = 0

CLOSES_AFTER = 0.2

TRAILERS = b"5\r\nhello\r\n0\r\nx-checksum: 5d41\r\n\r\n"


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> tuple[int, str]:
    """Read a body piece by piece: its length and digest."""
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
    head = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode("latin-1") + body


WRONG = {
    "/garbage": b"\x00\x01 this is no HTTP\r\n\r\n",
    "/half": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this",
    "/half-head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "/half-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nff\r\nhal",
    "/nothing": b"",
}

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


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    global CONNECTIONS
    CONNECTIONS += 1
    connection = CONNECTIONS
    patience = None
    try:
        while True:
            async with asyncio.timeout(patience):
                head = await reader.readuntil(b"\r\n\r\n")
            if not await one(head, reader, writer, connection):
                return
            # `/closing` has the connection end when it is idle for a moment, as that of a server in a hurry.
            patience = CLOSES_AFTER if b" /closing " in head else None
    except (EOFError, ConnectionError, ValueError, TimeoutError):
        pass
    finally:
        writer.close()


async def one(
    head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int
) -> bool:
    """Answer one request; say whether the connection goes on."""
    line, *fields = head.decode("latin-1").split("\r\n")[:-2]
    method, target, _ = line.split(" ")
    pairs = [(name, value.strip()) for name, value in (field.split(":", 1) for field in fields)]
    headers = {name.lower(): value for name, value in pairs}
    url = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    try:
        length, digest = (0, "") if url.path == "/early" else await read_body(reader, headers)
    except EOFError:
        LOG.append(f"{url.path} broke off")
        raise
    if url.path == "/log":
        writer.write(answer(json.dumps(LOG).encode()))
    elif url.path == "/trailing":
        writer.write(answer(b"".join(TRAILERS_SEEN)))
    elif url.path in PLAIN:
        head, end, body = PLAIN[url.path].partition(b"\r\n\r\n")
        writer.write(head + end + (b"" if method == "HEAD" else body))
    elif url.path in WRONG:
        writer.write(WRONG[url.path])
        return False
    elif url.path == "/early":  # answers before it has read the body
        writer.write(answer(b"too large", "413 Content Too Large", "Connection: close"))
        await writer.drain()
        await read_body(reader, headers)
        return False
    elif url.path == "/until-close":
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end")
        return False
    elif url.path in ("/hang", "/stall", "/events"):
        await never_ending(url.path, reader, writer, query)
        return False
    elif url.path == "/maybe" and "FAIL" in os.environ:
        writer.write(answer(b"no", "500 Internal Server Error"))
    elif url.path == "/maybe" and "DIE" in os.environ:
        return False
    elif url.path == "/half-on" and os.environ["HOSTNAME"] == query["name"]:
        writer.write(WRONG["/half"])  # and this one replica breaks off
        return False
    elif url.path == "/narrow":  # from now on the kernel keeps one connection waiting, and no more
        for listener in SERVERS[0].sockets:
            with socket.socket(fileno=os.dup(listener.fileno())) as narrow:
                narrow.listen(0)
        writer.write(answer(b""))
    elif url.path == "/slow":
        await asyncio.sleep(float(query["seconds"]))
        writer.write(answer(b"at last"))
    elif url.path == "/upgrade":
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write(b", and goodbye")
        return False
    elif url.path == "/download":
        await download(writer, int(query["bytes"]))
    else:
        facts = {
            "method": method, "target": target, "headers": pairs, "connection": connection,
            "length": length, "sha256": digest, "hostname": os.environ["HOSTNAME"],
        }  # fmt: skip
        body = json.dumps(facts).encode()
        writer.write(answer(b"" if method == "HEAD" else body, "200 OK", "Content-Type: application/json"))
    await writer.drain()
    return True


async def never_ending(
    path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, query: dict[str, str]
) -> None:
    """Keep silent, or send events, until the other side goes; note that it did."""
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
        LOG.append(f"{path} left alone {query.get('id', '')}".rstrip())


async def download(writer: asyncio.StreamWriter, length: int) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
    piece = bytes(1 << 18)
    while length:
        writer.write(piece[: min(length, len(piece))])
        length -= min(length, len(piece))
        await writer.drain()


async def main() -> None:
    server = await asyncio.start_server(
        serve, os.environ.get("HOST", "127.0.0.1"), int(os.environ["PORT"]), limit=1 << 20
    )
    SERVERS.append(server)
    await server.serve_forever()


asyncio.run(main())
