"""The fast lane: accepts clients, and keeps what their connections share.

It takes the place of Hypercorn and of the ASGI lane on the port of the clients. Requests for admin paths go
on to the admin application, which Hypercorn serves on a private Unix socket, as to just another upstream.
There is no task, no timer and no lock for a request: deadlines are swept.
"""

import asyncio
import random
import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, Self

import structlog

from loadbalancer.errors import TooManyConnectionsError
from loadbalancer.listening import BACKLOG
from loadbalancer.proxy.accounting import Accounting
from loadbalancer.proxy.fast.accepting import Acceptor, Handshakes
from loadbalancer.proxy.fast.client import ClientConnection
from loadbalancer.proxy.fast.client_shell import LINGER, ClientShell
from loadbalancer.proxy.fast.limits import Limits
from loadbalancer.proxy.fast.pool import Pool
from loadbalancer.proxy.fast.quick import key_finder
from loadbalancer.proxy.forwarding import TrustedProxies
from loadbalancer.proxy.request import RequestIds
from loadbalancer.proxy.router import KEPT_ALIVE, Router
from loadbalancer.routing.keys import KeyRule
from loadbalancer.routing.upstream import Upstream
from loadbalancer.settings import Settings

TICK = 0.05
"""Seconds between two readings of the clock; also how long a part of a short answer is kept back."""

MAX_REFUSED = 1024
"""Refused connections that may linger at once, so that their clients can read why."""

log = structlog.get_logger("loadbalancer.proxy")


class Http2Server(Protocol):
    """Takes the connections that speak HTTP/2."""

    async def serve(self, transport: asyncio.Transport, address: str) -> None:
        """Serve a connection of a client with that address until it ends."""

    async def drain(self) -> None:
        """Take no more requests."""


class FastLane:
    """Serves clients; used inside `async with`.

    Args:
        router: Finds replicas for requests.
        settings: Time-outs, what is hashed, and how long requests may wait for a replica.
        accounting: Where requests are counted and logged.
        admin: Path of the Unix socket on which the admin application listens.
        http2: Takes the connections that speak HTTP/2, which only those with TLS can choose.
        rng: Source of made-up request ids.
    """

    def __init__(
        self,
        router: Router,
        settings: Settings,
        accounting: Accounting,
        admin: str,
        http2: Http2Server | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.limits = Limits.of(settings)
        self.now = 0.0
        """The loop's time at the last tick: what deadlines are reckoned from."""
        self.ids = RequestIds(rng or random.Random())
        self.rule = KeyRule.parse(settings.hash_on)
        self.key = key_finder(self.rule)
        self.router = router
        self.admin = Pool("the admin application", admin, 0, KEPT_ALIVE, self, self.limits)
        self.clock: Callable[[], float] = time.perf_counter
        self.closing = False
        self.accounting = accounting
        self.proxies = TrustedProxies(settings.trusted_proxies)
        self.scheme = "http"
        self.collecting: deque[tuple[ClientShell, float]] = deque()
        """Clients to whom a part of a short answer is owed since the last tick, and when their requests
        began."""
        self._proxy_protocol = settings.proxy_protocol
        self._http2 = http2
        self._pools: dict[Upstream, Pool] = {}
        self._clients: set[ClientShell] = set()
        self._refused: set[ClientShell] = set()
        self._from_address: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening: set[asyncio.Task[None]] = set()
        """Connections that are accepted and not yet open."""
        self._acceptors: dict[socket.socket, Acceptor] = {}
        self._empty = asyncio.Event()
        shortest = min(settings.idle_timeout, settings.response_timeout, self.limits.head_timeout, LINGER)
        self._sweep_every = min(max(shortest / 10, 0.02), 1.0)

    async def __aenter__(self) -> Self:
        self.now = asyncio.get_running_loop().time()
        for part in (self._tick, self._follow_rotation):
            self.spawn(self._keep_doing(part), self.defect)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_accepting()
        for client in (*self._clients, *self._refused):
            client.abort()
        for pool in (*self._pools.values(), self.admin):
            pool.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.accounting.close()

    async def listen(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Take connections from a socket, beside others that there may be.

        Args:
            listener: A bound socket; the lane closes it when it stops to listen.
            tls: What they are encrypted by; None: they are not.
        """
        self.scheme = "http" if tls is None else "https"
        acceptor = Acceptor(
            listener,
            lambda source: ClientConnection(self, source),
            self._spawn_open,
            Handshakes(
                tls,
                within=self.limits.head_timeout,
                linger=LINGER,
                proxies=self.proxies if self._proxy_protocol else None,
            ),
        )
        self._acceptors[listener] = acceptor
        acceptor.start(BACKLOG)

    def stop_listening(self, listener: socket.socket) -> None:
        """Take no more connections from a socket; those that were taken go on."""
        self._acceptors.pop(listener).stop()

    async def drain(self, patience: float) -> None:
        """Take no more connections, let requests in flight end, and return when all have.

        Args:
            patience: Seconds after which the rest is left to `async with` to cut off.
        """
        self.closing = True
        for acceptor in self._acceptors.values():
            acceptor.accept_waiting()
        self._stop_accepting()
        for client in tuple(self._clients):
            client.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                if self._http2 is not None:
                    await self._http2.drain()
                if self._opening:
                    await asyncio.wait(self._opening)
                if self._clients:
                    await self._empty.wait()

    def _stop_accepting(self) -> None:
        while self._acceptors:
            self._acceptors.popitem()[1].stop()

    # -- for connections and carriers ------------------------------------------------------------------

    def admit(self, client: ClientShell) -> None:
        """Count a new connection.

        Raises:
            TooManyConnectionsError: There is no room for it.
        """
        limits = self.limits
        address = client.peer.address
        reason = ""
        if limits.connections and len(self._clients) >= limits.connections:
            reason = f"there are {limits.connections} connections already"
        elif limits.client_connections and self._from_address[address] >= limits.client_connections:
            reason = f"there are {limits.client_connections} connections from {address} already"
        if reason:
            if len(self._refused) >= MAX_REFUSED:
                client.abort()
            else:
                self._refused.add(client)
            raise TooManyConnectionsError(reason)
        if limits.client_connections:
            self._from_address[address] += 1
        self._clients.add(client)
        self._empty.clear()

    def forget(self, client: ClientShell) -> None:
        """It has ended."""
        self._refused.discard(client)
        if client not in self._clients:
            return
        self._clients.remove(client)
        if self.limits.client_connections:
            address = client.peer.address
            self._from_address[address] -= 1
            if not self._from_address[address]:
                del self._from_address[address]
        if not self._clients:
            self._empty.set()

    def hand_over(self, client: ClientShell) -> None:
        """It speaks HTTP/2."""
        if self._http2 is None:
            client.abort()
            return
        self.spawn(self._http2.serve(client.transport, client.peer.address), self.defect).add_done_callback(
            lambda _: self.forget(client)
        )

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

    def spawn(
        self, work: Coroutine[Any, Any, None], when_failed: Callable[[BaseException], None]
    ) -> "asyncio.Task[None]":
        """Run what has to wait in a task of the lane's.

        Args:
            work: What has to wait.
            when_failed: Called with what the work did not foresee.
        """
        task = asyncio.create_task(work)
        self._tasks.add(task)

        def ended(task: "asyncio.Task[None]") -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                when_failed(error)

        task.add_done_callback(ended)
        return task

    def _spawn_open(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.spawn(work, self.defect)
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    @staticmethod
    def defect(error: BaseException) -> None:
        """Something went wrong that nobody foresaw: it is our own fault, and no replica's."""
        log.error("defect", reason=repr(error), exc_info=error)

    # -- within ----------------------------------------------------------------------------------------

    async def _keep_doing(self, part: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a part of the lane for as long as the lane lives; what it does not foresee starts it again."""
        while True:
            try:
                await part()
            except Exception as error:
                self.defect(error)
            await asyncio.sleep(TICK)

    async def _tick(self) -> None:
        """Read the clock, pass on what was kept back long enough, and now and then look at all deadlines."""
        loop = asyncio.get_running_loop()
        swept = 0.0
        while True:
            owed = len(self.collecting)
            await asyncio.sleep(TICK)
            self.now = now = loop.time()
            for _ in range(owed):
                client, began = self.collecting.popleft()
                try:
                    client.release_collected(began)
                except Exception as error:
                    client.defect(error)
            if now - swept >= self._sweep_every:
                swept = now
                self._sweep(now)

    def _sweep(self, now: float) -> None:
        for clients in (self._clients, self._refused):
            for client in [client for client in clients if client.deadline < now]:
                try:
                    client.expired()
                except Exception as error:
                    client.defect(error)
        for pool in (*self._pools.values(), self.admin):
            pool.sweep(now)

    async def _follow_rotation(self) -> None:
        """Let requests that wait for a connection to a replica that has left go elsewhere, all at once."""
        while True:
            await self.router.source.next_snapshot()
            present = set(self.router.source.snapshot.upstreams)
            for upstream, pool in self._pools.items():
                if upstream not in present:
                    pool.dismiss()
