"""The listening sockets for clients. They are bound first, so that no replica starts if the port is taken."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

BACKLOG = 4096
"""Maximum number of connections in the kernel's queue, so that a burst of thousands is not refused."""


@dataclass(frozen=True)
class Address:
    """An address to bind a socket to, as `socket.getaddrinfo` returns it."""

    family: int
    kind: int
    protocol: int
    sockaddr: Any


async def resolve(host: str, port: int) -> Address:
    """Find the address of a host.

    The resolver may block for many seconds. So it runs in a daemon thread. Unlike a thread of an executor, a
    daemon thread does not delay the end of the process.

    Args:
        host: A hostname or an address.
        port: The port.

    Raises:
        OSError: The host has no address.
    """
    loop = asyncio.get_running_loop()
    address: asyncio.Future[Address] = loop.create_future()

    def settle(result: Address | OSError) -> None:
        if address.done():
            return  # the caller was cancelled
        if isinstance(result, OSError):
            address.set_exception(result)
        else:
            address.set_result(result)

    def look_up() -> None:
        result: Address | OSError
        try:
            first = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            result = Address(first[0], first[1], first[2], first[4])
        except OSError as error:
            result = OSError(error.errno, error.strerror)
        try:
            loop.call_soon_threadsafe(settle, result)
        except RuntimeError:
            return  # the loop is closed, and the process ends

    threading.Thread(target=look_up, name="resolver", daemon=True).start()
    return await address


@contextmanager
def bind(address: Address, count: int = 1) -> Iterator[list[socket.socket]]:
    """Bind sockets to one address for the duration of a `with` block.

    Args:
        address: An address from `resolve`.
        count: The number of sockets. The kernel spreads new connections over them.

    Raises:
        OSError: The address cannot be bound.
    """
    with ExitStack() as stack:
        sockets = []
        for _ in range(count):
            listener = stack.enter_context(socket.socket(address.family, address.kind, address.protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if count > 1:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address.sockaddr)
            sockets.append(listener)
        yield sockets
