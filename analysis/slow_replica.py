"""A replica that waits before it answers as the sample replica does, for the comparison of policies.

The environment variable `DELAY` gives the seconds that it waits. The replica whose name is in `SLOW` waits
ten times as long. Requests wait in parallel, so the load does not add to the latency.
"""

import asyncio
import os

SLOW_FACTOR = 10.0


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    name = os.environ["HOSTNAME"]
    delay = float(os.environ["DELAY"]) * (SLOW_FACTOR if name == os.environ.get("SLOW") else 1.0)
    body = f'{{"message":"Hello from Server: {name}","status":"successful"}}'.encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if not head.startswith(b"GET /heartbeat"):
                await asyncio.sleep(delay)
            writer.write(answer)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def _main() -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", int(os.environ["PORT"]), backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
