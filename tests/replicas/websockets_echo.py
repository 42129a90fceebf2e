"""A WebSocket echo server as its library's documentation has it: it serves nothing else."""

import asyncio
import os
from collections.abc import Sequence

from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        if message == "please close":
            await connection.close(4001, "as you wish")
        elif message == "please break":
            connection.transport.abort()
        elif message == "who are you":
            await connection.send(os.environ["HOSTNAME"])
        else:
            await connection.send(message)


def choose(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return Subprotocol("echo") if "echo" in offered else None


async def main() -> None:
    async with serve(echo, "127.0.0.1", int(os.environ["PORT"]), select_subprotocol=choose):
        await asyncio.Future()


asyncio.run(main())
