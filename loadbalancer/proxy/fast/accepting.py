"""Accepting clients: all that wait are accepted in one turn of the loop, so that each gets its share of it.

(libuv accepts one connection in a turn; under load the others wait in the kernel's queue for seconds.)
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog

from loadbalancer.errors import is_own_limit
from loadbalancer.proxy.forwarding import TrustedProxies, plain
from loadbalancer.proxy.proxy_protocol import MAX_HEADER, ProxyProtocolError, read_header

ACCEPTED_AT_ONCE = 256
"""Connections that are accepted in one turn: more would keep those that are open waiting."""

ROUNDS = 64
"""Turns' worths of connections that are accepted before a socket is closed: more than any backlog."""

PAUSE = 0.1
"""Seconds without accepting after the system has had no file or memory left for a connection."""

KEEP_ALIVE_IDLE, KEEP_ALIVE_INTERVAL, KEEP_ALIVE_COUNT = 60, 15, 4
"""Seconds of silence before the kernel probes a connection, seconds between probes, and probes that may be
lost."""

_GONE = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR})
"""Errors of one connection, which has ended before it was accepted (accept(2))."""

log = structlog.get_logger("loadbalancer.proxy")

Spawn = Callable[[Coroutine[Any, Any, None]], object]


def probe_when_silent(sock: socket.socket) -> None:
    """Have the kernel find out that the other end has vanished; accepted connections inherit it (tcp(7)).

    Args:
        sock: A TCP socket, which listens or is connected.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", KEEP_ALIVE_IDLE),
        ("TCP_KEEPINTVL", KEEP_ALIVE_INTERVAL),
        ("TCP_KEEPCNT", KEEP_ALIVE_COUNT),
    ):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


@dataclass(frozen=True)
class Handshakes:
    """What comes before the first request of a connection.

    Args:
        tls: What connections are encrypted by; None: they are not.
        within: Seconds for everything that comes before.
        linger: Seconds for the end of a TLS connection.
        proxies: Connections from these begin with HAProxy's PROXY header; None: no connection does.
    """

    tls: ssl.SSLContext | None
    within: float
    linger: float
    proxies: TrustedProxies | None

    def times(self) -> dict[str, Any]:
        """The time limits of TLS, as the event loop takes them."""
        if self.tls is None:
            return {}
        return {"ssl_handshake_timeout": self.within, "ssl_shutdown_timeout": self.linger}


class Acceptor:
    """Accepts the connections of one listening socket.

    Args:
        listener: A bound socket.
        make_protocol: Makes the protocol of a connection, told the client's address.
        spawn: Runs a coroutine in a task that somebody looks after.
        handshakes: What comes before the first request.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[str], asyncio.BaseProtocol],
        spawn: Spawn,
        handshakes: Handshakes,
    ) -> None:
        self._listener = listener
        self._make_protocol = make_protocol
        self._spawn = spawn
        self._handshakes = handshakes
        self._loop = asyncio.get_running_loop()
        self._pausing: asyncio.TimerHandle | None = None

    def start(self, backlog: int) -> None:
        """Listen.

        Args:
            backlog: Connections that the kernel may hold meanwhile.
        """
        self._listener.setblocking(False)
        if self._listener.family != socket.AF_UNIX:
            probe_when_silent(self._listener)
        self._listener.listen(backlog)
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def accept_waiting(self) -> None:
        """Accept all that wait, before the socket is closed: closing it would reset their connections."""
        for _ in range(ROUNDS):
            if self._pausing is not None or not self._accept():
                return

    def stop(self) -> None:
        """Accept no more, and close the socket."""
        if self._listener.fileno() < 0:
            return
        if self._pausing is not None:
            self._pausing.cancel()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()

    def _accept(self) -> bool:
        """Accept a turn's worth of connections; say whether more may wait."""
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, peer = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                if error.errno in _GONE:
                    continue
                if not is_own_limit(error):
                    raise
                log.error("no connection can be accepted", reason=error.strerror)
                self._loop.remove_reader(self._listener.fileno())
                self._pausing = self._loop.call_later(PAUSE, self._go_on)
                return False
            connection.setblocking(False)
            self._spawn(self._open(connection, plain(peer[0]) if isinstance(peer, tuple) else ""))
        return True

    def _go_on(self) -> None:
        self._pausing = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    async def _open(self, connection: socket.socket, peer: str) -> None:
        handshakes = self._handshakes
        source = peer
        try:
            if handshakes.proxies is not None and handshakes.proxies.trusts(peer):
                async with asyncio.timeout(handshakes.within):
                    source = await self._read_proxy_header(connection) or peer
            await self._loop.connect_accepted_socket(
                lambda: self._make_protocol(source), connection, ssl=handshakes.tls, **handshakes.times()
            )
        except ProxyProtocolError as error:
            log.warning("connection refused", peer=peer, reason=str(error))
            connection.close()
        except (OSError, ssl.SSLError):
            connection.close()  # the client has gone, or its handshake has failed: there is nobody to tell

    async def _read_proxy_header(self, connection: socket.socket) -> str | None:
        """Take the PROXY header off a connection, and not a byte more: TLS may follow.

        Returns:
            The address of the client; None if the header tells none.

        Raises:
            ProxyProtocolError: There is none, or it is not whole when the connection ends.
        """
        taken = b""
        while True:
            await self._readable(connection)
            seen = connection.recv(MAX_HEADER, socket.MSG_PEEK)
            header = read_header(taken + seen)
            if header is not None:
                connection.recv(header.length - len(taken))
                return header.source
            if not seen:
                raise ProxyProtocolError("the connection ended in its PROXY protocol header")
            taken += connection.recv(len(seen))  # the header is not whole, so all of this belongs to it

    async def _readable(self, connection: socket.socket) -> None:
        """Wait until there is something to read."""
        readable: asyncio.Future[None] = self._loop.create_future()

        def wake() -> None:
            if not readable.done():
                readable.set_result(None)

        self._loop.add_reader(connection.fileno(), wake)
        try:
            await readable
        finally:
            self._loop.remove_reader(connection.fileno())
