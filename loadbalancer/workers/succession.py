"""How workers whose control plane was killed learn that another has taken over.

The control plane holds an abstract Unix socket named after the address that it serves. Only one can, so
that two cannot share a port by mistake, which SO_REUSEPORT would let them. A successor answers there once
its own workers serve.
"""

import asyncio
import socket
from contextlib import suppress

ASKS_EVERY = 0.2
"""Seconds between two looks for a successor."""

WAITS_FOR = 60.0
"""Seconds after which there will be none."""


def name_for(address: object) -> str:
    """Where to meet: an address in the abstract namespace, which is the network namespace's own.

    Args:
        address: What the port's socket is bound to.
    """
    return f"\0loadbalancer {address}"


def claim(name: str) -> socket.socket:
    """Be the one who serves.

    Args:
        name: See `name_for`.

    Raises:
        OSError: Another does.
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
    """What a claimed socket is called."""
    name: bytes = held.getsockname()
    return name.decode()


async def announce(held: socket.socket) -> asyncio.Server:
    """Say to all who ask that there is somebody who serves."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(b"!")
            await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(say, sock=held)


def _connect(name: str) -> socket.socket:
    # By hand, for uvloop takes abstract names for paths; on one machine this needs no waiting.
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.connect(name)
    except OSError:
        made.close()
        raise
    return made


async def successor(name: str) -> bool:
    """Wait for somebody who takes over; say whether there was one within `WAITS_FOR` seconds."""
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
