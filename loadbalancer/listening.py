"""The sockets on which clients connect, bound before anything starts: a taken port costs no replica."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from loadbalancer.workers.succession import claim, name_for

BACKLOG = 4096
"""Connections that the kernel may hold for us while we are busy: a burst of thousands must not be refused."""


@dataclass(frozen=True)
class Listeners:
    """Bound sockets for one address.

    Args:
        sockets: One for each process that is to take connections.
        succession: Held by the one load balancer that serves there with workers; None without workers.
    """

    sockets: list[socket.socket]
    succession: socket.socket | None

    def listen(self) -> None:
        """From now on, who connects may wait a moment but is not refused."""
        for listener in self.sockets:
            listener.listen(BACKLOG)


@contextmanager
def bind(host: str, port: int, workers: int) -> Iterator[Listeners]:
    """Bind, for as long as a `with` block lasts.

    Args:
        host: A name or an address.
        port: The port.
        workers: How many processes are to take connections; the kernel spreads them over their sockets.

    Raises:
        OSError: It is not possible.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise OSError(error.errno, error.strerror) from error
    with ExitStack() as stack:
        succession = stack.enter_context(claim(name_for(address))) if workers > 1 else None
        sockets = []
        for _ in range(workers):
            listener = stack.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if workers > 1:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            sockets.append(listener)
        yield Listeners(sockets, succession)
