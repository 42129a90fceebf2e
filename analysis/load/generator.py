"""Sends requests and measures them, in a closed loop or an open one.

In a **closed loop** there is a fixed number of clients, and each sends its next request after the answer to
the last. A server that stalls then gets fewer requests, and the stall shows in few latencies. In an **open
loop** requests start at times that do not depend on the answers (a Poisson process), and latency begins at
the scheduled start. A stall then shows in every request that it delays ("coordinated omission": Tene, 2013).
"""

import asyncio
import random
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter as now  # uvloop's `loop.time` has a resolution of 1 ms
from urllib.parse import urlsplit

from analysis.load.connection import Connection
from analysis.load.record import Record

Requests = Callable[[int], bytes]
"""Makes the bytes of a request from its number."""

SWEEP = 0.1
"""Seconds between two checks for requests that have timed out."""

CONNECTS_AT_ONCE = 256
"""Most connections that are being opened at the same time."""


@dataclass(frozen=True)
class Target:
    """The server and the path that requests go to.

    Args:
        host: Name or address of the server.
        port: Port of the server.
        tls: Whether connections use TLS.
        path: Path and query.
    """

    host: str
    port: int
    tls: bool
    path: str

    @classmethod
    def parse(cls, url: str) -> "Target":
        """Parse a URL.

        Raises:
            ValueError: The text is not an HTTP or HTTPS URL with a host.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not a URL such as http://127.0.0.1:5000/home")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        tls = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if tls else 80), tls, path)

    def get(self, request_id: str = "") -> bytes:
        """The bytes of a GET request.

        Args:
            request_id: Id of the request; empty: the request has none, and the load balancer generates one.
        """
        header = f"X-Request-Id: {request_id}\r\n" if request_id else ""
        return f"GET {self.path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n{header}\r\n".encode()


@dataclass(frozen=True)
class Load:
    """The number of requests, and the kind of loop that sends them.

    Args:
        requests: Number of requests that are measured.
        concurrency: Closed loop: number of clients. Open loop: largest number of connections.
        rate: Open loop: requests a second. 0: closed loop.
        warm_up: Number of requests before the measurement.
        timeout: Seconds until a request without an answer fails.
        seed: Seed of the start times of an open loop.
        together: Closed loop: whether all clients connect before the first request is sent.
    """

    requests: int = 10_000
    concurrency: int = 100
    rate: float = 0.0
    warm_up: int = 0
    timeout: float = 30.0
    seed: int = 1
    together: bool = False


async def run(
    target: Target, load: Load, make: Requests | None = None, progress: Callable[[int], None] | None = None
) -> Record:
    """Send all requests, wait for the last answer, and return the record of the run.

    Args:
        target: Server and path that the requests go to.
        load: Number of requests, and the kind of loop.
        make: Makes the requests; default: GET requests for the target's path without an id.
        progress: Called regularly with the number of requests that have ended.
    """
    plain = target.get()
    generator = _Generator(target, load, make or (lambda number: plain), progress or (lambda ended: None))
    return await generator.run()


class _Generator:
    """One run of the load generator."""

    def __init__(self, target: Target, load: Load, make: Requests, progress: Callable[[int], None]) -> None:
        self._target = target
        self._load = load
        self._make = make
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._idle: list[Connection] = []
        self._connections: set[Connection] = set()
        self._opening = asyncio.Semaphore(CONNECTS_AT_ONCE)
        self._opened = 0
        self._due: deque[tuple[int, float]] = deque()
        """Requests that wait for a connection: the number and the scheduled start of each."""
        self._in_flight: dict[Connection, float] = {}
        """The scheduled start of the request on each busy connection."""
        self._record = Record()
        self._next = -load.warm_up
        self._ended = -load.warm_up
        self._finished = asyncio.Event()
        self._began = 0.0
        self._tls = ssl._create_unverified_context() if target.tls else None  # noqa: S323 - the load is a measurement
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> Record:
        self._began = now()
        sweeping = asyncio.create_task(self._sweep())
        arriving = asyncio.create_task(self._arrive() if self._load.rate else self._fill())
        try:
            await self._finished.wait()
            await arriving
        finally:
            for task in (sweeping, arriving, *self._tasks):
                task.cancel()
            for connection in self._connections:
                connection.transport.abort()
        self._record.origin = self._began
        self._record.took = now() - self._began
        return self._record

    async def _fill(self) -> None:
        """Closed loop: send the first request of every client."""
        clients = min(self._load.concurrency, self._load.requests + self._load.warm_up)
        if self._load.together:
            self._opened = clients
            await asyncio.gather(*(self._open() for _ in range(clients)))
        for _ in range(clients):
            self._take_next()

    async def _arrive(self) -> None:
        """Open loop: start each request at its scheduled time."""
        rng = random.Random(self._load.seed)
        due = self._began
        for number in range(-self._load.warm_up, self._load.requests):
            due += rng.expovariate(self._load.rate)
            if (wait := due - now()) > 0:
                await asyncio.sleep(wait)
            if number == 0:
                self._began = due
            self._begin(number, due)

    def _take_next(self) -> None:
        if self._next < self._load.requests:
            number = self._next
            self._next += 1
            due = now()
            if number == 0:
                self._began = due
            self._begin(number, due)

    def _begin(self, number: int, due: float) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                self._send(connection, number, due)
                return
        self._due.append((number, due))  # a request that failed to get a connection goes to the end
        if self._opened < self._load.concurrency:
            self._opened += 1
            task = asyncio.create_task(self._open())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        try:
            async with self._opening, asyncio.timeout(self._load.timeout):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self._done, self._closed),
                    self._target.host,
                    self._target.port,
                    ssl=self._tls,
                )
        except (OSError, TimeoutError) as error:
            self._opened -= 1
            if self._due:
                reason = "refused" if isinstance(error, ConnectionRefusedError) else "no connection"
                self._end(*self._due.popleft(), 0, reason.encode())
            return
        self._connections.add(connection)
        if self._due:
            self._send(connection, *self._due.popleft())
        else:
            self._idle.append(connection)

    def _send(self, connection: Connection, number: int, due: float) -> None:
        self._in_flight[connection] = due
        connection.send(number, self._make(number))

    def _done(self, connection: Connection, status: int, body: bytes) -> None:
        number, due = connection.request, self._in_flight.pop(connection)
        if not connection.transport.is_closing():
            self._idle.append(connection)
            if self._due:
                self._begin(*self._due.popleft())
        self._end(number, due, status, body)

    def _closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._opened -= 1
        if self._due:
            self._begin(*self._due.popleft())

    def _end(self, number: int, due: float, status: int, body: bytes) -> None:
        self._ended += 1
        if number >= 0:
            self._record.add(number, due - self._began, now() - due, status, body)
        if not self._load.rate:
            self._take_next()
        if self._ended == self._load.requests:
            self._finished.set()

    async def _sweep(self) -> None:
        """Show the progress, and end the requests that have timed out, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP)
            self._progress(max(self._ended, 0))
            late = now() - self._load.timeout
            for connection, due in list(self._in_flight.items()):
                if due < late:
                    connection.give_up("timed out")
