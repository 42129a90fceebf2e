"""Sends requests and measures them, in a closed loop or an open one.

In a **closed loop** each of so many clients sends its next request when it has the answer to the last: a
server that stalls is asked less, and the stall shows in few requests. In an **open loop** requests begin at
times that do not depend on the answers (a Poisson process), and latency counts from when a request was meant
to begin: a stall shows in every request that it has held up ("coordinated omission": Tene, 2013).
"""

import asyncio
import random
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter as now  # the loop's own time is that of its last turn, in whole milliseconds
from urllib.parse import urlsplit

from analysis.load.connection import Connection
from analysis.load.record import Record

Requests = Callable[[int], bytes]
"""Makes the request of a number, as it is sent."""

SWEEP = 0.1
"""Seconds between two looks for requests that have waited too long."""

CONNECTS_AT_ONCE = 256


@dataclass(frozen=True)
class Target:
    """Where requests go.

    Args:
        host: Name or address.
        port: Port.
        tls: Whether the connection is encrypted.
        path: Path and query.
    """

    host: str
    port: int
    tls: bool
    path: str

    @classmethod
    def parse(cls, url: str) -> "Target":
        """Read a URL.

        Raises:
            ValueError: It is none that can be asked.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no URL such as http://127.0.0.1:5000/home")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        tls = parts.scheme == "https"
        return cls(parts.hostname, parts.port or (443 if tls else 80), tls, path)

    def get(self, request_id: str = "") -> bytes:
        """A GET request.

        Args:
            request_id: Its id; empty: none is sent, and the load balancer makes one up.
        """
        line = f"X-Request-Id: {request_id}\r\n" if request_id else ""
        return f"GET {self.path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n{line}\r\n".encode()


@dataclass(frozen=True)
class Load:
    """How much is asked, and how.

    Args:
        requests: How many requests are measured.
        concurrency: Closed loop: clients; open loop: connections at most.
        rate: Open loop: requests a second; 0: a closed loop.
        warm_up: Requests before those, which are not measured.
        timeout: Seconds for an answer.
        seed: Of the times of arrival.
        together: Closed loop: whether all clients connect before the first sends its request.
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
    """Send all requests and wait for the last answer.

    Args:
        target: Where to.
        load: How much.
        make: Makes the requests; default: a GET of the target's path, without an id.
        progress: Told how many have ended, now and then.
    """
    plain = target.get()
    generator = _Generator(target, load, make or (lambda number: plain), progress or (lambda ended: None))
    return await generator.run()


class _Generator:
    """One run."""

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
        """Requests that wait for a connection: number, and when they were meant to begin."""
        self._under_way: dict[Connection, float] = {}
        self._record = Record()
        self._next = -load.warm_up
        self._ended = -load.warm_up
        self._finished = asyncio.Event()
        self._began = 0.0
        self._tls = ssl._create_unverified_context() if target.tls else None  # noqa: S323 - it is only measured
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
        """Closed loop: every client sends its first request."""
        clients = min(self._load.concurrency, self._load.requests + self._load.warm_up)
        if self._load.together:
            self._opened = clients
            await asyncio.gather(*(self._open() for _ in range(clients)))
        for _ in range(clients):
            self._take_next()

    async def _arrive(self) -> None:
        """Open loop: requests begin at times of their own."""
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
        self._due.append((number, due))  # in the order of arrival, but for those that begin anew
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
        self._under_way[connection] = due
        connection.send(number, self._make(number))

    def _done(self, connection: Connection, status: int, body: bytes) -> None:
        number, due = connection.request, self._under_way.pop(connection)
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
        while True:
            await asyncio.sleep(SWEEP)
            self._progress(max(self._ended, 0))
            late = now() - self._load.timeout
            for connection, due in list(self._under_way.items()):
                if due < late:
                    connection.give_up("no answer in time")
