"""The connections to one replica: those that are idle, and those that are being made."""

import asyncio
from collections import deque

from loadbalancer.errors import (
    ExhaustedError,
    UpstreamRefusedError,
    UpstreamUnreachableError,
    is_own_limit,
)
from loadbalancer.proxy.fast.answering import KnownAnswer
from loadbalancer.proxy.fast.limits import Limits
from loadbalancer.proxy.fast.upstream import UpstreamConnection
from loadbalancer.proxy.retry import Clock

KNOWN_HEADS = 256
"""How many heads of answers are known again."""

CONNECTS_AT_ONCE = 128
"""Connections that are made at a time: of thousands, many would time out while the loop makes the others."""


class Pool:
    """The connections to one replica.

    Args:
        name: Of the replica, for messages.
        host: Address, or the path of a Unix socket.
        port: Port; 0 for a Unix socket.
        kept: Seconds an idle connection is kept.
        clock: Knows the time at the last sweep.
        limits: How long to wait for a connection.
    """

    def __init__(self, name: str, host: str, port: int, kept: float, clock: Clock, limits: Limits) -> None:
        self.name = name
        self._clock = clock
        self._limits = limits
        self._host = host
        self._port = port
        self._kept = kept
        self._idle: list[UpstreamConnection] = []
        self._connecting = 0
        self._waiting: deque[asyncio.Future[UpstreamConnection | None]] = deque()
        """Exchanges that wait, in their order: for a connection that comes back, or for leave to make one."""
        self.known: dict[bytes, KnownAnswer] = {}
        """Heads of answers that have been read before."""
        self._closed = False

    def take(self) -> UpstreamConnection | None:
        """The idle connection that was used last, or None."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    async def obtain(self) -> UpstreamConnection:
        """A new connection, or one that another exchange has done with, whichever comes first.

        Raises:
            UpstreamRefusedError: The replica accepts none, or not in time.
            ExhaustedError: None can be opened for a reason of our own, and none has come back in time.
        """
        why = ""
        try:
            async with asyncio.timeout(None) as patience:
                while True:
                    if self._closed:
                        raise UpstreamRefusedError(f"{self.name} has left")
                    if self._connecting < CONNECTS_AT_ONCE:
                        try:
                            return await self._connect()
                        except OSError as error:
                            if not is_own_limit(error):
                                told = error.strerror or str(error)
                                raise UpstreamRefusedError(f"{self.name} cannot be reached: {told}") from None
                            why = error.strerror or str(error)
                            if patience.when() is None:
                                now = asyncio.get_running_loop().time()
                                patience.reschedule(now + self._limits.queue_timeout)
                    connection = await self._turn()
                    if connection is not None:
                        return connection
        except TimeoutError:
            raise ExhaustedError(f"the load balancer can open no connection: {why}") from None

    async def open(self) -> UpstreamConnection:
        """Make a connection.

        Raises:
            OSError: The replica refuses.
        """
        loop = asyncio.get_running_loop()
        if self._port:
            _, connection = await loop.create_connection(
                lambda: UpstreamConnection(self), self._host, self._port
            )
        else:
            _, connection = await loop.create_unix_connection(lambda: UpstreamConnection(self), self._host)
        return connection

    def give_back(self, connection: UpstreamConnection) -> None:
        """Keep a connection for another exchange."""
        if self._closed:
            connection.transport.close()
            return
        connection.idle_since = self._clock.now
        if self._waiting and self._wake(connection):
            return
        self._idle.append(connection)

    def remember(self, head: bytes, answer: KnownAnswer) -> None:
        """Know a head again; their number is bounded, for dates make new ones every second."""
        if len(self.known) >= KNOWN_HEADS:
            self.known.clear()
        self.known[head] = answer

    def forget(self, connection: UpstreamConnection) -> None:
        """It has ended."""
        if connection.exchange is None and connection in self._idle:
            self._idle.remove(connection)

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long; the list is in the order of use."""
        while self._idle and now - self._idle[0].idle_since > self._kept:
            self._idle.pop(0).transport.close()

    def close(self) -> None:
        """Close what is idle, and keep nothing any more."""
        self._closed = True
        while self._idle:
            self._idle.pop().transport.close()
        while self._wake(None):
            pass  # each looks for itself what becomes of it

    # -- within --------------------------------------------------------------------------------------

    async def _connect(self) -> UpstreamConnection:
        limit = self._limits.connect_timeout
        self._connecting += 1
        own = False
        try:
            async with asyncio.timeout(limit):
                return await self.open()
        except TimeoutError:
            raise UpstreamUnreachableError(f"{self.name} accepted no connection within {limit:g} s") from None
        except OSError as error:
            own = is_own_limit(error)
            raise
        finally:
            self._connecting -= 1
            if not own:  # else the next would fail in the same way, and wake the one after it for nothing
                self._wake(None)

    async def _turn(self) -> UpstreamConnection | None:
        """Wait for a connection that comes back, or for leave to make one (None)."""
        waiting: asyncio.Future[UpstreamConnection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():
                # It had just got what it waited for: the next one may have that.
                connection = waiting.result()
                if connection is None:
                    self._wake(None)
                else:
                    self.give_back(connection)
            raise

    def _wake(self, connection: UpstreamConnection | None) -> bool:
        """Let the first that waits go on; say whether there was one."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(connection)
                return True
        return False
