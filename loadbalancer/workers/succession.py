"""How workers whose control plane was killed learn that another one has taken over.

The control plane holds an abstract Unix socket named after the address that it serves. Only one process can
hold it, so two load balancers cannot share a port by mistake, which SO_REUSEPORT would allow. A successor
answers on that socket once its own workers serve.
"""

import asyncio
import socket
from contextlib import suppress

ASKS_EVERY = 0.2
"""Seconds between two attempts to reach a successor."""

WAITS_FOR = 60.0
"""Seconds after which no successor is expected any more."""


def name_for(address: object) -> str:
    """The name of the socket, in the abstract namespace, which belongs to the network namespace.

    Args:
        address: The address that the port's sockets are bound to.
    """
    return f"\0loadbalancer {address}"


def claim(name: str) -> socket.socket:
    """Become the one load balancer that serves an address with workers.

    Args:
        name: See `name_for`.

    Returns:
        The socket that holds the claim until it is closed.

    Raises:
        OSError: Another load balancer holds it.
    """
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        held.bind(name)
        held.listen()
    except OSError:
        held.close()
        raise
    return held


def name_of(held: socket.socket) -> str:
    """The name of a socket that `claim` has returned."""
    name: bytes = held.getsockname()
    return name.decode()


async def announce(held: socket.socket) -> asyncio.Server:
    """Answer workers of a predecessor that ask whether a successor serves."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(b"!")
            await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(say, sock=held)


def _connect(name: str) -> socket.socket:
    # Not by the loop: uvloop takes abstract names for paths. On one machine this never waits.
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.connect(name)
    except OSError:
        made.close()
        raise
    return made


async def successor(name: str) -> bool:
    """Wait for a successor; returns whether one has answered within `WAITS_FOR` seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(WAITS_FOR):
            while True:
                with suppress(OSError):
                    reader, writer = await asyncio.open_unix_connection(sock=_connect(name))
                    try:
                        if await reader.read(1):
                            return True
                    finally:
                        writer.close()
                await asyncio.sleep(ASKS_EVERY)
    return False
