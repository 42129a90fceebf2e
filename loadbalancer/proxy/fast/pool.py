"""The connections to one replica: the idle ones, and those that are being made. Every operation is O(1)."""

import asyncio
from collections import deque

from loadbalancer.errors import (
    ExhaustedError,
    LoadBalancerError,
    UpstreamLeftError,
    UpstreamRefusedError,
    UpstreamUnreachableError,
    is_own_limit,
)
from loadbalancer.proxy.fast.limits import Limits
from loadbalancer.proxy.fast.replica_side import ReplicaState
from loadbalancer.proxy.fast.upstream import UpstreamConnection
from loadbalancer.proxy.retry import Clock

CONNECTS_AT_ONCE = 128
"""Connections that are made at a time: of thousands, many would time out while the loop makes the others."""

SURE = 0.1
"""Seconds of idleness in which a replica is not expected to close a connection; common servers wait for
seconds."""

_CLOSED = ReplicaState.CLOSED


class Pool:
    """The connections to one replica.

    Args:
        name: Of the replica, for messages.
        host: Address, or the path of a Unix socket.
        port: Port; 0 for a Unix socket.
        kept: Seconds for which an idle connection is kept.
        clock: Knows the time, to about 50 ms.
        limits: How long to wait for a connection.
    """

    def __init__(self, name: str, host: str, port: int, kept: float, clock: Clock, limits: Limits) -> None:
        self.name = name
        self._clock = clock
        self._limits = limits
        self._host = host
        self._port = port
        self._kept = kept
        self._idle: deque[UpstreamConnection] = deque()
        """In the order of use. Those that have ended stay until they come to an end of it."""
        self._connecting = 0
        self._waiting: deque[asyncio.Future[UpstreamConnection | None]] = deque()
        """Requests that wait, in their order: for a connection that comes back, or for leave to make one."""
        self._obtaining: dict[asyncio.Timeout, LoadBalancerError | None] = {}
        """The time-outs of all requests that want a connection, and what each fails with when time is up."""
        self._closed = False

    def take(self, sure: bool = False) -> UpstreamConnection | None:
        """The idle connection that was used last, or None.

        Args:
            sure: Whether the request must not meet a connection that the replica may just be closing.
        """
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.state is _CLOSED or connection.transport.is_closing():
                continue
            if sure and self._clock.now - connection.idle_since > SURE:
                idle.append(connection)
                return None
            return connection
        return None

    async def obtain(self) -> UpstreamConnection:
        """A new connection, or one that comes back meanwhile, whichever is first.

        Raises:
            UpstreamRefusedError: The replica accepts none, or not in time.
            UpstreamLeftError: The replica has left the rotation.
            ExhaustedError: None can be opened for a reason of our own, and none has come back in time.
        """
        async with asyncio.timeout(None) as patience:
            self._obtaining[patience] = None
            try:
                return await self._obtain()
            except asyncio.CancelledError:
                if patience.expired() and (error := self._obtaining[patience]) is not None:
                    raise error from None
                raise
            finally:
                del self._obtaining[patience]

    async def _obtain(self) -> UpstreamConnection:
        while True:
            if self._closed:
                raise self._left()
            if self._connecting < CONNECTS_AT_ONCE:
                try:
                    return await self._connect()
                except OSError as error:
                    told = error.strerror or str(error)
                    if not is_own_limit(error):
                        raise UpstreamRefusedError(f"{self.name} cannot be reached: {told}") from None
                    self._end_within(
                        self._limits.queue_timeout,
                        ExhaustedError(f"the load balancer can open no connection: {told}"),
                    )
            connection = await self._turn()
            if connection is not None:
                return connection

    def dismiss(self) -> None:
        """The replica has left the rotation: requests that have no connection yet go elsewhere, at once."""
        self._end_within(0.0, self._left())

    def _end_within(self, seconds: float, error: LoadBalancerError) -> None:
        """Let no request wait longer than that for a connection.

        Args:
            seconds: How long each of them may still wait; one that was told before keeps its time.
            error: What it fails with then.
        """
        until = asyncio.get_running_loop().time() + seconds
        for patience in self._obtaining:
            due = patience.when()
            if not patience.expired() and (due is None or until < due):
                patience.reschedule(until)
                self._obtaining[patience] = error

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
        """Keep a connection for another request."""
        if self._closed:
            connection.transport.close()
            return
        connection.idle_since = self._clock.now
        if self._waiting and self._wake(connection):
            return
        self._idle.append(connection)

    def sweep(self, now: float) -> None:
        """Close the connections that have been idle for too long."""
        idle = self._idle
        while idle and (idle[0].state is _CLOSED or now - idle[0].idle_since > self._kept):
            idle.popleft().transport.close()

    def close(self) -> None:
        """Close what is idle, and keep nothing any more."""
        self._closed = True
        while self._idle:
            self._idle.pop().transport.close()
        while self._wake(None):
            pass  # each looks for itself what becomes of it

    # -- within --------------------------------------------------------------------------------------

    def _left(self) -> UpstreamLeftError:
        return UpstreamLeftError(f"{self.name} has left")

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
