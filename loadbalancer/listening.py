"""The sockets on which clients connect, bound before anything starts: a taken port costs no replica."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

BACKLOG = 4096
"""Connections that the kernel may queue while the process is busy: a burst of thousands is not refused."""


@dataclass(frozen=True)
class Address:
    """An address that a socket can be bound to, as `socket.getaddrinfo` gives it."""

    family: int
    kind: int
    protocol: int
    sockaddr: Any


async def resolve(host: str, port: int) -> Address:
    """Find the address of a host.

    The resolver may block for many seconds. It runs in a daemon thread, which does not hold up the end of
    the process; an executor's thread does.

    Args:
        host: A name or an address.
        port: The port.

    Raises:
        OSError: The host has no address.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Address] = loop.create_future()

    def settle(answer: Address | OSError) -> None:
        if found.done():
            return  # the wait was given up
        if isinstance(answer, OSError):
            found.set_exception(answer)
        else:
            found.set_result(answer)

    def look_up() -> None:
        answer: Address | OSError
        try:
            first = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            answer = Address(first[0], first[1], first[2], first[4])
        except OSError as error:
            answer = OSError(error.errno, error.strerror)
        try:
            loop.call_soon_threadsafe(settle, answer)
        except RuntimeError:
            return  # the loop is closed: the process ends

    threading.Thread(target=look_up, name="resolver", daemon=True).start()
    return await found


@contextmanager
def bind(address: Address, count: int = 1) -> Iterator[list[socket.socket]]:
    """Bind sockets to one address, for as long as a `with` block lasts.

    Args:
        address: The address; see `resolve`.
        count: How many sockets; the kernel spreads the connections over them.

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
