"""The fast lane: listens, and keeps what its connections share.

It takes the place of Hypercorn and of the ASGI lane on the port of the clients. Requests for the load
balancer's own paths go on to the Quart application, which Hypercorn serves on a private Unix socket, as
to just another upstream. There is no task, no timer and no lock for a request: deadlines are swept.
"""

import asyncio
import random
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from loadbalancer.errors import ClosingError, TooManyConnectionsError
from loadbalancer.listening import BACKLOG
from loadbalancer.proxy.accounting import Accounting
from loadbalancer.proxy.asgi.http2 import Http2
from loadbalancer.proxy.fast.client import ClientConnection
from loadbalancer.proxy.fast.incoming import Incoming
from loadbalancer.proxy.fast.limits import Limits
from loadbalancer.proxy.fast.pool import Pool
from loadbalancer.proxy.request import RequestIds
from loadbalancer.proxy.retry import RetryBudget
from loadbalancer.proxy.router import KEPT_ALIVE, Router
from loadbalancer.routing.keys import KeyRule
from loadbalancer.routing.snapshot import SnapshotSource
from loadbalancer.routing.upstream import Upstream
from loadbalancer.settings import Settings

KNOWN_REQUESTS = 4096
"""How many requests are known again."""


class FastLane:
    """Serves clients; used inside `async with`.

    Args:
        source: Publishes the snapshots that requests go by.
        settings: Time-outs, what is hashed, and how long requests may wait for a replica.
        accounting: Where requests are counted and logged.
        control: Path of the Unix socket on which the load balancer's own pages are served.
        http2: Takes the connections that speak HTTP/2, which only those with TLS can choose.
        rng: Source of made-up request ids.
    """

    def __init__(
        self,
        source: SnapshotSource,
        settings: Settings,
        accounting: Accounting,
        control: str,
        http2: Http2 | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.limits = Limits.of(settings)
        self.now = 0.0
        """The loop's time at the last sweep: what deadlines are reckoned from."""
        self.ids = RequestIds(rng or random.Random())
        self.rule = KeyRule.parse(settings.hash_on)
        self.router = Router(source, RetryBudget(self), settings.queue_timeout, settings.queue_size)
        self.control = Pool("the load balancer's own page", control, 0, KEPT_ALIVE, self, self.limits)
        self.clock: Callable[[], float] = time.perf_counter
        self.closing = False
        self.known: dict[bytes, Incoming] = {}
        """Requests without a body that have been read before, by their bytes: each has one reading."""
        self.accounting = accounting
        self.scheme: str = "http"
        self._http2 = http2
        self._pools: dict[Upstream, Pool] = {}
        self._clients: set[ClientConnection] = set()
        self._from_address: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._empty = asyncio.Event()
        shortest = min(settings.idle_timeout, settings.response_timeout, self.limits.head_timeout)
        self._sweep_every = min(max(shortest / 10, 0.02), 1.0)

    async def __aenter__(self) -> Self:
        self.now = asyncio.get_running_loop().time()
        self._sweeper = asyncio.create_task(self._sweep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in tuple(self._clients):
            client.abort()
        for pool in (*self._pools.values(), self.control):
            pool.close()
        tasks = [self._sweeper, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def listen(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Take connections.

        Args:
            listener: A bound socket.
            tls: What they are encrypted by; None: they are not.
        """
        loop = asyncio.get_running_loop()
        self.scheme = "http" if tls is None else "https"
        self._server = await loop.create_server(
            lambda: ClientConnection(self),
            sock=listener,
            backlog=BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=None if tls is None else self.limits.head_timeout,
        )

    async def drain(self, patience: float) -> None:
        """Take no more connections, let requests in flight end, and return when all have.

        Args:
            patience: Seconds after which the rest is left to `async with` to cut off.
        """
        self.closing = True
        if self._server is not None:
            self._server.close()
        if self._http2 is not None:
            await self._http2.drain()
        for client in tuple(self._clients):
            client.close_when_idle()
        if self._clients:
            try:
                async with asyncio.timeout(patience):
                    await self._empty.wait()
            except TimeoutError:
                return

    # -- for connections and exchanges -----------------------------------------------------------------

    def admit(self, client: ClientConnection) -> None:
        """Count a new connection.

        Raises:
            ClosingError: There are to be no new ones.
            TooManyConnectionsError: There is no room for it.
        """
        limits = self.limits
        if self.closing:
            raise ClosingError("the load balancer is shutting down")
        if limits.connections and len(self._clients) >= limits.connections:
            raise TooManyConnectionsError(f"there are {limits.connections} connections already")
        if limits.client_connections:
            if self._from_address[client.address] >= limits.client_connections:
                raise TooManyConnectionsError(
                    f"there are {limits.client_connections} connections from {client.address} already"
                )
            self._from_address[client.address] += 1
        self._clients.add(client)
        self._empty.clear()

    def forget(self, client: ClientConnection) -> None:
        """It has ended, or was not admitted."""
        if client not in self._clients:
            return
        self._clients.remove(client)
        if self.limits.client_connections:
            self._from_address[client.address] -= 1
            if not self._from_address[client.address]:
                del self._from_address[client.address]
        if not self._clients:
            self._empty.set()

    def hand_over(self, client: ClientConnection) -> None:
        """It speaks HTTP/2."""
        if self._http2 is None:
            client.abort()
            return
        self.spawn(self._http2.serve(client.transport)).add_done_callback(lambda _: self.forget(client))

    def remember(self, data: bytes, incoming: Incoming) -> None:
        """Know a request again."""
        if len(self.known) >= KNOWN_REQUESTS:
            self.known.clear()
        self.known[data] = incoming

    def pool(self, upstream: Upstream) -> Pool:
        """The connections to a replica, which go when it goes."""
        pool = self._pools.get(upstream)
        if pool is None:
            pool = self._pools[upstream] = Pool(
                upstream.hostname, upstream.host, upstream.port, KEPT_ALIVE, self, self.limits
            )
            upstream.on_retired.append(lambda: self._let_go(upstream))
        return pool

    def _let_go(self, upstream: Upstream) -> None:
        if (pool := self._pools.pop(upstream, None)) is not None:
            pool.close()

    def spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run what has to wait in a task of the lane's."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._sweep_every)
            self.now = now = loop.time()
            for client in [client for client in self._clients if client.deadline < now]:
                client.expired()
            for pool in (*self._pools.values(), self.control):
                pool.sweep(now)
