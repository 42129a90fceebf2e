"""A WebSocket echo server, made as the documentation of `websockets` shows. It serves no other requests."""

import asyncio
import os
from collections.abc import Sequence

from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

CLOSED: list[str] = []
"""Close code and reason of each connection that has ended."""


async def echo(connection: ServerConnection) -> None:
    """Serve one connection, and note how it ends."""
    try:
        await answer(connection)
    finally:
        CLOSED.append(f"{connection.close_code} {connection.close_reason}")


async def answer(connection: ServerConnection) -> None:
    """Echo messages, and obey the ones that are commands."""
    async for message in connection:
        if message == "please close":
            await connection.close(4001, "as you wish")
        elif message == "please break":
            connection.transport.abort()
        elif message == "who has closed":
            await connection.send("\n".join(CLOSED))
        elif message == "who are you":
            await connection.send(os.environ["HOSTNAME"])
        else:
            await connection.send(message)


def add_cookies(connection: ServerConnection, request: Request, response: Response) -> None:
    """Add two cookies to the answer that accepts the WebSocket."""
    if response.status_code == 101:
        response.headers["Set-Cookie"] = "seat=12; Path=/"
        response.headers["Set-Cookie"] = "row=3"


def choose(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Choose the subprotocol `echo` if the client offers it."""
    return Subprotocol("echo") if "echo" in offered else None


async def main() -> None:
    port = int(os.environ["PORT"])
    async with serve(echo, "127.0.0.1", port, select_subprotocol=choose, process_response=add_cookies):
        await asyncio.Future()


asyncio.run(main())
