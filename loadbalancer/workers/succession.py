"""Succession: workers whose control plane was killed serve until the next control plane takes over.

The control plane binds an abstract Unix socket whose name contains the address that it serves. Only one
process can bind it. So two load balancers cannot share a port by mistake, which SO_REUSEPORT would allow. The
next control plane, the successor, answers on this socket once its own workers serve.
"""

import asyncio
import socket
from contextlib import suppress

RETRY_INTERVAL = 0.2
"""Seconds between two attempts to reach a successor."""

SUCCESSION_TIMEOUT = 60.0
"""Maximum seconds to wait for a successor."""


def name_for(address: object) -> str:
    """Return the name of the socket, in the abstract namespace of this network namespace.

    Args:
        address: The address of the listening sockets.
    """
    return f"\0loadbalancer {address}"


def claim(name: str) -> socket.socket:
    """Claim an address, so that no other load balancer serves it with workers.

    Args:
        name: A name from `name_for`.

    Returns:
        The claim: a socket that keeps other load balancers off until it is closed.

    Raises:
        OSError: Another load balancer has claimed the address.
    """
    claimed = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claimed.bind(name)
        claimed.listen()
    except OSError:
        claimed.close()
        raise
    return claimed


def name_of(claimed: socket.socket) -> str:
    """Return the name of a socket from `claim`."""
    name: bytes = claimed.getsockname()
    return name.decode()


async def announce(claimed: socket.socket) -> asyncio.Server:
    """Answer the workers of the previous control plane: the successor's own workers serve."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(b"!")
            await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(answer, sock=claimed)


def _connect(name: str) -> socket.socket:
    # uvloop treats abstract names as paths, so it cannot connect. A Unix socket connects without waiting.
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.connect(name)
    except OSError:
        connection.close()
        raise
    return connection


async def wait_for_successor(name: str) -> bool:
    """Wait for a successor; return whether one has answered within `SUCCESSION_TIMEOUT` seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(SUCCESSION_TIMEOUT):
            while True:
                with suppress(OSError):
                    reader, writer = await asyncio.open_unix_connection(sock=_connect(name))
                    try:
                        if await reader.read(1):
                            return True
                    finally:
                        writer.close()
                await asyncio.sleep(RETRY_INTERVAL)
    return False
