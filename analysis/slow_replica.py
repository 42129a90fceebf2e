"""A replica that takes its time, which the policies are compared on; it answers as the sample replica does.

`DELAY` is the seconds that it takes for a request, `SLOW` the name of the replica that takes ten times that.
A request is not held up by others, so that what is slow is the replica and not the machine.
"""

import asyncio
import os

TIMES = 10.0


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    name = os.environ["HOSTNAME"]
    delay = float(os.environ["DELAY"]) * (TIMES if name == os.environ.get("SLOW") else 1.0)
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
