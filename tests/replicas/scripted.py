"""A replica whose answers a test scripts in headers of its requests; bytes are in hexadecimal.

| header of the request | effect |
|---|---|
| `X-Say` | the replica answers with these bytes; without it, the answer describes the request in JSON |
| `X-When: at-once` | the replica answers without reading the body, and closes the connection |
| `X-Then: close` | the replica closes the connection after the answer; a number: so many seconds after it |
| `X-Later` | the replica sends these bytes 0.2 s after the answer |

`/seen` lists the request lines of all connections.
"""

import asyncio
import json
import os

SEEN: list[str] = []
"""Request lines of all connections, without those of `/seen` and of heartbeats."""

CONNECTIONS = 0
"""Number of connections until now."""


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection."""
    global CONNECTIONS
    CONNECTIONS += 1
    number = CONNECTIONS
    try:
        while await exchange(reader, writer, number):
            pass
    except (EOFError, ConnectionError):
        pass
    finally:
        writer.close()


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
    """Answer one request, and return whether the connection stays open."""
    raw = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *fields = raw.split("\r\n")[:-2]
    if line.split(" ")[1] not in ("/seen", "/heartbeat"):
        SEEN.append(line)
    headers = {name.lower(): value.strip() for name, value in (field.split(":", 1) for field in fields)}
    if headers.get("x-when") == "at-once":
        writer.write(bytes.fromhex(headers["x-say"]))
        await writer.drain()
        return False
    if headers.get("expect") == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = await read_body(reader, headers)
    if line.split(" ")[1] == "/seen":
        writer.write(described(SEEN))
    elif "x-say" in headers:
        writer.write(bytes.fromhex(headers["x-say"]))
    else:
        writer.write(described({"line": line, "raw": raw, "length": length, "connection": number}))
    await writer.drain()
    if "x-later" in headers:
        await asyncio.sleep(0.2)
        writer.write(bytes.fromhex(headers["x-later"]))
    then = headers.get("x-then", "0" if "close" in headers.get("connection", "") else "")
    if then.replace(".", "").isdigit():
        await asyncio.sleep(float(then))
    return not then


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> int:
    """Read the body of a request, and return its length."""
    if headers.get("transfer-encoding") != "chunked":
        length = int(headers.get("content-length", "0"))
        await reader.readexactly(length)
        return length
    length = 0
    while size := int(await reader.readline(), 16):
        await reader.readexactly(size + 2)
        length += size
    await reader.readline()
    return length


def described(facts: object) -> bytes:
    """An answer with facts in JSON."""
    body = json.dumps(facts).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", int(os.environ["PORT"]), limit=1 << 25)
    await server.serve_forever()


asyncio.run(main())
