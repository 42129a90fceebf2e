"""The control plane's handle on one worker process, from its start to its end."""

import asyncio
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto

import structlog

from loadbalancer.routing.snapshot import SnapshotSource
from loadbalancer.settings import Settings
from loadbalancer.telemetry.metrics import Metrics
from loadbalancer.tls import Certificate
from loadbalancer.workers import messages
from loadbalancer.workers.leases import Leases
from loadbalancer.workers.messages import MAX_LINE, Message, Notice

TICK = 0.25
"""Seconds of the unit in which silence is counted. A control plane that itself stands still, for however
long, counts one tick, and then reads what has arrived meanwhile."""

SILENT_AFTER = 1.0
"""Seconds without a report after which another worker also accepts from the worker's socket. An error costs
nothing: the worker goes on accepting as well."""

STUCK_AFTER = 10.0
"""Seconds without a report after which the worker is killed, with its connections."""

ENDS_WITHIN = 2.0
"""Seconds in which a worker process that has closed its channel must end."""

log = structlog.get_logger("loadbalancer.workers")


@dataclass(frozen=True)
class WorkerContext:
    """What all workers have in common.

    Args:
        source: Publishes the snapshots.
        settings: The options.
        metrics: Where the workers' counts are added up.
        admin: Path of the Unix socket on which the admin application listens.
        succession: Name of the socket on which a successor of the control plane will answer; empty: the
            workers do not outlive the control plane.
        certificate: What clients are served with; None: plain HTTP.
    """

    source: SnapshotSource
    settings: Settings
    metrics: Metrics
    admin: str
    succession: str
    certificate: Certificate | None


class State(Enum):
    """The state of a worker, as its handle knows it."""

    ENDED = auto()
    """There is no process."""
    STARTING = auto()
    """The process does not serve yet."""
    SERVING = auto()
    SILENT = auto()
    """It has served, and has sent nothing for a while."""
    LEAVING = auto()
    """It has been told to drain, or was killed."""


class WorkerHandle:
    """One worker, in one process after another.

    Args:
        context: What all workers have in common.
        number: From 1.
        on_change: Called when the state has changed.
    """

    def __init__(self, context: WorkerContext, number: int, on_change: Callable[[], None]) -> None:
        self.number = number
        self._leases = Leases(context.source, context.metrics)
        self._context = context
        self._on_change = on_change
        self._state = State.ENDED
        self._process: Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._sockets: list[int] = []

    @property
    def state(self) -> State:
        """The worker's state."""
        return self._state

    async def run(self, listeners: Sequence[socket.socket]) -> str:
        """Start a process, and return when it has ended.

        `kill` ends it early. Cancelling it kills the process too, but does not wait for its end.

        Args:
            listeners: The listening sockets of all workers. The process inherits all of them, and accepts
                from those that `accept` names.

        Returns:
            How the process has ended, in words.

        Raises:
            OSError: It could not be started.
        """
        self._enter(State.STARTING)
        try:
            self._process, channel = await _spawn(listeners)
            reader, self._writer = await asyncio.open_connection(sock=channel, limit=MAX_LINE)
            return await self._attend(self._process, reader)
        finally:
            if self._process is not None:
                _kill(self._process)  # of no effect, unless this was broken off
            if self._writer is not None:
                self._writer.close()
            self._writer = self._process = None
            self._leases.end()
            self._enter(State.ENDED)

    def accept(self, sockets: list[int]) -> None:
        """Have it accept from these sockets alone, by their indices."""
        if sockets != self._sockets and self._state in (State.SERVING, State.SILENT):
            self._sockets = sockets
            self._send(messages.Accept(listeners=sockets))

    def send_rotation(self) -> None:
        """Send it the rotation, if that has changed."""
        if self._writer is not None and (rotation := self._leases.rotation()) is not None:
            self._send(rotation)

    def renew(self, certificate: Certificate) -> None:
        """Have it use another certificate."""
        self._send(messages.Renew(certificate=messages.Pem.of(certificate.pair)))

    def drain(self, patience: float) -> None:
        """Have it let its requests in flight end, and end; a worker that has none yet ends at once.

        Args:
            patience: Seconds for the requests in flight.
        """
        if self._state is State.STARTING:
            self.kill()
        elif self._state in (State.SERVING, State.SILENT):
            self._send(messages.Drain(patience=patience))
            self._enter(State.LEAVING)

    def kill(self) -> None:
        """Kill its process, if there is one."""
        if self._state is not State.ENDED:
            self._enter(State.LEAVING)
            if self._process is not None:
                _kill(self._process)

    # -- within -------------------------------------------------------------------------------------

    async def _attend(self, process: Process, reader: asyncio.StreamReader) -> str:
        """Talk to the process until it has ended."""
        if self._state is State.LEAVING:  # it was killed before it was there
            _kill(process)
        certificate = self._context.certificate
        self._send(
            messages.Begin(
                settings=self._context.settings.model_dump(mode="json", exclude={"admin_token"}),
                admin=self._context.admin,
                succession=self._context.succession,
                certificate=messages.Pem.of(certificate.pair) if certificate else None,
            )
        )
        self.send_rotation()
        self._sockets = [self.number - 1]
        self._send(messages.Accept(listeners=self._sockets))
        fault = await self._listen(reader)
        if not fault:
            with suppress(TimeoutError):
                async with asyncio.timeout(ENDS_WITHIN):
                    return _ending(await process.wait())
            fault = "closed its channel and did not end"
        _kill(process)
        await process.wait()
        return f"{fault}, and was killed"

    async def _listen(self, reader: asyncio.StreamReader) -> str:
        """Take in what it sends until the channel ends.

        Returns:
            What is wrong with the worker, if it has to be killed; else nothing.
        """
        ticks = 0
        try:
            while ticks * TICK < STUCK_AFTER:
                try:
                    async with asyncio.timeout(TICK):
                        line = await reader.readline()
                except TimeoutError:
                    ticks += 1
                    if ticks * TICK >= SILENT_AFTER and self._state is State.SERVING:
                        log.warning("worker silent", worker=self.number)
                        self._enter(State.SILENT)
                    continue
                if not line:
                    return ""
                ticks = 0
                self._receive(messages.notices.validate_json(line))
            return f"was silent for {STUCK_AFTER:g} s"
        except ConnectionError:
            return ""
        except (ValueError, KeyError) as error:
            return f"sent a message that makes no sense ({error})"

    def _receive(self, notice: Notice) -> None:
        if isinstance(notice, messages.Report):
            self._leases.take(notice)
        elif isinstance(notice, messages.Released):
            self._leases.released(notice.id)
        if self._state is State.SILENT:
            log.info("worker heard again", worker=self.number)
            self._enter(State.SERVING)
        elif isinstance(notice, messages.Ready) and self._state is State.STARTING:
            self._enter(State.SERVING)

    def _send(self, message: Message) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(messages.line(message))

    def _enter(self, state: State) -> None:
        if state is not self._state:
            self._state = state
            self._on_change()


async def _spawn(listeners: Sequence[socket.socket]) -> tuple[Process, socket.socket]:
    """Start a worker process; returns it with this end of the channel."""
    ours, theirs = socket.socketpair()
    descriptors = [theirs.fileno(), *(listener.fileno() for listener in listeners)]
    try:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "loadbalancer.workers.worker", *map(str, descriptors)),
                stdin=DEVNULL,
                pass_fds=descriptors,
            )
    except BaseException:
        ours.close()
        raise
    return process, ours


def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()


def _ending(status: int) -> str:
    """How a process has ended, in words.

    Args:
        status: As `Process.wait` returns it: negative for a signal.
    """
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"was killed by signal {-status}"
