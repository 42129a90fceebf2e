"""The control plane's side: starts the workers, tells them who is in rotation, and adds up what they count.

What is counted in other processes is known here a moment later: within `PULSE` seconds, and at once when a
replica fails. That a replica which has left is idle is certain all the same: each worker holds what it has
been told of (`Upstream.held`) until it says that it has done with it.
"""

import asyncio
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Self

import structlog
from pydantic import BaseModel

from loadbalancer.routing.snapshot import SnapshotSource
from loadbalancer.routing.upstream import Upstream
from loadbalancer.settings import Settings
from loadbalancer.telemetry.metrics import Counts, Metrics
from loadbalancer.workers import messages
from loadbalancer.workers.messages import MAX_LINE, PULSE, SILENCE, Account, Member, Rotation

STEADY = 10.0
"""Seconds after which a worker that ends is not taken to have failed at its start."""

PAUSE, LONGEST_PAUSE = 0.1, 10.0
"""Seconds before a worker is started anew: doubled for each that was not steady."""

log = structlog.get_logger("loadbalancer.workers")


@dataclass(frozen=True)
class Employer:
    """What all workers of a crew have in common.

    Args:
        source: Publishes the snapshots.
        settings: The options.
        metrics: Where to add up what workers count.
        admin: Path of the Unix socket on which the admin application listens.
        succession: Where workers that survive the control plane look for its successor; empty: none shall.
    """

    source: SnapshotSource
    settings: Settings
    metrics: Metrics
    admin: str
    succession: str


@dataclass(slots=True)
class _Stay:
    """A member's stay in rotation, as one worker knows it."""

    upstream: Upstream
    in_flight: int = 0


@dataclass
class Worker:
    """One worker process, from its start to its end.

    Args:
        employer: What it is told.
        number: From 1.
    """

    employer: Employer
    number: int
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    _writer: asyncio.StreamWriter | None = None
    _stays: dict[int, _Stay] = field(default_factory=dict)
    _present: dict[Upstream, int] = field(default_factory=dict)
    _ids: "count[int]" = field(default_factory=lambda: count(1))
    _told: Rotation | None = None
    _in_flight: int = 0

    async def run(self, listener: socket.socket) -> str:
        """Run it, and return how it ended.

        Args:
            listener: A bound socket of its own, which stays open here: what waits in it waits for the next.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "loadbalancer.workers.worker"),
                *(str(theirs.fileno()), str(listener.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), listener.fileno()),
            )
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE)
        try:
            settings = self.employer.settings.model_dump(mode="json", exclude={"admin_token"})
            self.tell(
                messages.Begin(
                    settings=settings, admin=self.employer.admin, succession=self.employer.succession
                )
            )
            self.feed()
            how = await self._listen(reader)
        finally:
            self._writer.close()
            self._writer = None
            with suppress(ProcessLookupError):
                process.kill()
            status = await process.wait()
            self.let_go()
        return how or f"ended with status {status}"

    def feed(self) -> None:
        """Tell it who is in rotation, if that has changed, and it is there to be told."""
        if self._writer is None:
            return
        snapshot = self.employer.source.snapshot
        for upstream in snapshot.upstreams:
            if upstream not in self._present:
                self._present[upstream] = stay = next(self._ids)
                self._stays[stay] = _Stay(upstream)
                upstream.held += 1
        for upstream in self._present.keys() - set(snapshot.upstreams):
            del self._present[upstream]
        rotation = Rotation(
            hopeful=self.employer.source.hopeful,
            members=[
                Member(
                    id=self._present[upstream],
                    hostname=upstream.hostname,
                    number=upstream.number,
                    host=upstream.host,
                    port=upstream.port,
                    weight=upstream.weight,
                    share=upstream.share,
                )
                for upstream in snapshot.upstreams
            ],
        )
        if rotation != self._told:
            self._told = rotation
            self.tell(rotation)

    def tell(self, message: BaseModel) -> None:
        """Tell it something; never waits."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(messages.line(message))

    async def _listen(self, reader: asyncio.StreamReader) -> str:
        """Hear what it tells until it ends; what is wrong with it, if it has to be ended."""
        silent = 0
        try:
            # Second by second: if it was we who stood still, what it has told meanwhile is there to be read.
            while silent < SILENCE:
                try:
                    async with asyncio.timeout(1.0):
                        line = await reader.readline()
                except TimeoutError:
                    silent += 1
                    continue
                if not line:
                    return ""
                silent = 0
                self.hear(messages.news.validate_json(line))
            return f"was silent for {SILENCE} s"
        except ConnectionError:
            return ""
        except (ValueError, KeyError) as error:
            return f"told nonsense: {error}"

    def hear(self, told: messages.Ready | messages.Report | messages.Released) -> None:
        """Take in what it tells."""
        if isinstance(told, messages.Ready):
            self.ready.set()
        elif isinstance(told, messages.Released):
            stay = self._stays.pop(told.id)
            stay.upstream.let_go(stay.in_flight)
        else:
            metrics = self.employer.metrics
            metrics.add(Counts(told.requests, told.latency, told.seconds))
            metrics.in_flight += told.in_flight - self._in_flight
            self._in_flight = told.in_flight
            for account in told.accounts:
                self._note(account)

    def _note(self, account: Account) -> None:
        stay = self._stays[account.id]
        upstream = stay.upstream
        upstream.count(account.in_flight - stay.in_flight)
        stay.in_flight = account.in_flight
        if account.answered:
            upstream.answered += account.answered
            upstream.failures = 0
        for _ in range(min(account.failed, account.failing) if account.answered else account.failed):
            upstream.failed()
        for _ in range(account.refused):
            upstream.refused()

    def let_go(self) -> None:
        """It has ended, and everything with it."""
        self.employer.metrics.in_flight -= self._in_flight
        for stay in self._stays.values():
            stay.upstream.let_go(stay.in_flight)
        self._stays.clear()
        self._present.clear()
        self._told = None
        self._in_flight = 0


class Crew:
    """Keeps the workers at work; used inside `async with`.

    Args:
        employer: What they are told.
        listeners: A bound socket for each.
    """

    def __init__(self, employer: Employer, listeners: Sequence[socket.socket]) -> None:
        self._employer = employer
        self._listeners = listeners
        self._workers = [Worker(employer, number) for number, _ in enumerate(listeners, 1)]
        self._closing = False
        self._keeping: list[asyncio.Task[None]] = []
        self._feeding: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._keeping = [
            asyncio.create_task(self._keep(worker, listener))
            for worker, listener in zip(self._workers, self._listeners, strict=True)
        ]
        self._feeding = asyncio.create_task(self._feed())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        tasks = [task for task in (*self._keeping, self._feeding) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def ready(self) -> None:
        """Return when all of them serve."""
        for worker in self._workers:
            await worker.ready.wait()

    async def drain(self, patience: float) -> None:
        """Have them take no more connections, and return when all have ended.

        Args:
            patience: Seconds for requests in flight.
        """
        self._closing = True
        for worker in self._workers:
            worker.tell(messages.Drain(patience=patience))
        await asyncio.wait(self._keeping)

    def reload(self) -> None:
        """Have them read the certificate again."""
        for worker in self._workers:
            worker.tell(messages.Reload())

    async def _keep(self, worker: Worker, listener: socket.socket) -> None:
        clock = asyncio.get_running_loop().time
        hasty = 0
        while not self._closing:
            began = clock()
            try:
                how = await worker.run(listener)
            except OSError as error:
                how = f"could not be started: {error}"
            if self._closing:
                return
            hasty = hasty + 1 if clock() - began < STEADY else 0
            log.error("worker lost", worker=worker.number, reason=how)
            await asyncio.sleep(min(PAUSE * 2.0**hasty, LONGEST_PAUSE))

    async def _feed(self) -> None:
        while True:
            for worker in self._workers:
                worker.feed()
            with suppress(TimeoutError):
                async with asyncio.timeout(PULSE):
                    await self._employer.source.next_snapshot()
