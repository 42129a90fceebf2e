"""The worker handle: the control plane's side of one worker, through all its processes."""

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
"""The unit, in seconds, in which silence is counted. If the control plane itself pauses, the whole pause
counts as one tick. Then the control plane reads the reports that have arrived meanwhile."""

SILENT_AFTER = 1.0
"""Seconds without a report after which another worker also accepts from the worker's socket. The silent
worker still accepts too, so a wrong guess does no harm."""

STUCK_AFTER = 10.0
"""Seconds without a report after which the worker is killed. Its connections break."""

EXIT_TIMEOUT = 2.0
"""Maximum seconds between the end of a worker's channel and the end of its process."""

log = structlog.get_logger("loadbalancer.workers")


@dataclass(frozen=True)
class WorkerContext:
    """The configuration and the objects that all workers share.

    Args:
        source: The publisher of snapshots.
        settings: The options.
        metrics: The metrics to which the workers' counts are added.
        admin: The path of the Unix socket on which the admin application listens.
        succession: The name of the socket on which a successor of the control plane will answer; empty: the
            workers end with the control plane.
        certificate: The certificate for client connections; None: plain HTTP.
    """

    source: SnapshotSource
    settings: Settings
    metrics: Metrics
    admin: str
    succession: str
    certificate: Certificate | None


class State(Enum):
    """The state of a worker, as its handle sees it."""

    ENDED = auto()
    """No process runs."""
    STARTING = auto()
    """The process does not serve yet."""
    SERVING = auto()
    """The process serves clients."""
    SILENT = auto()
    """The process has served, but has sent nothing for `SILENT_AFTER` seconds."""
    LEAVING = auto()
    """The process drains, or was killed."""


class WorkerHandle:
    """Starts and directs the processes of one worker, one after the other.

    Args:
        context: The configuration of all workers.
        number: The number of the worker, from 1.
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
        """The current state."""
        return self._state

    async def run(self, listeners: Sequence[socket.socket]) -> str:
        """Start a process, and return when it has ended.

        `kill` ends the process early. A cancellation also kills it, but does not wait for its end.

        Args:
            listeners: The listening sockets of all workers. The process inherits all of them. It accepts from
                those that `accept` names.

        Returns:
            The way in which the process has ended, in words.

        Raises:
            OSError: The process could not be started.
        """
        self._enter(State.STARTING)
        try:
            self._process, channel = await _spawn(listeners)
            reader, self._writer = await asyncio.open_connection(sock=channel, limit=MAX_LINE)
            return await self._direct(self._process, reader)
        finally:
            if self._process is not None:
                _kill(self._process)  # has an effect only after an exception
            if self._writer is not None:
                self._writer.close()
            self._writer = self._process = None
            self._leases.end_all()
            self._enter(State.ENDED)

    def accept(self, sockets: list[int]) -> None:
        """Make the worker accept from these sockets and no others, by their indices."""
        if sockets != self._sockets and self._state in (State.SERVING, State.SILENT):
            self._sockets = sockets
            self._send(messages.Accept(listeners=sockets))

    def send_rotation(self) -> None:
        """Send the rotation to the worker if it has changed."""
        if self._writer is not None and (rotation := self._leases.rotation()) is not None:
            self._send(rotation)

    def renew(self, certificate: Certificate) -> None:
        """Make the worker use another certificate."""
        self._send(messages.Renew(certificate=messages.Pem.of(certificate.pair)))

    def drain(self, patience: float) -> None:
        """Make the worker finish its requests in flight and end. A worker that is starting ends at once.

        Args:
            patience: Maximum seconds for the requests in flight.
        """
        if self._state is State.STARTING:
            self.kill()
        elif self._state in (State.SERVING, State.SILENT):
            self._send(messages.Drain(patience=patience))
            self._enter(State.LEAVING)

    def kill(self) -> None:
        """Kill the worker's process, if one runs."""
        if self._state is not State.ENDED:
            self._enter(State.LEAVING)
            if self._process is not None:
                _kill(self._process)

    # -- internals ----------------------------------------------------------------------------------

    async def _direct(self, process: Process, reader: asyncio.StreamReader) -> str:
        """Exchange messages with the process until it has ended; return the way in which it has ended."""
        if self._state is State.LEAVING:  # `kill` was called while the process was being created
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
                async with asyncio.timeout(EXIT_TIMEOUT):
                    return _describe_exit(await process.wait())
            fault = "closed its channel and did not end"
        _kill(process)
        await process.wait()
        return f"{fault}, and was killed"

    async def _listen(self, reader: asyncio.StreamReader) -> str:
        """Receive notices until the channel ends, or until the worker is at fault.

        Returns:
            The fault for which the worker must be killed; empty: none.
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
            return f"sent an invalid message ({error})"

    def _receive(self, notice: Notice) -> None:
        if isinstance(notice, messages.Report):
            self._leases.take(notice)
        elif isinstance(notice, messages.LeaseEnded):
            self._leases.end_one(notice.id)
        if self._state is State.SILENT:
            log.info("worker serving again", worker=self.number)
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
    """Start a worker process; return it and the control plane's end of the channel."""
    channel, worker_end = socket.socketpair()
    descriptors = [worker_end.fileno(), *(listener.fileno() for listener in listeners)]
    try:
        with worker_end:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "loadbalancer.workers.worker", *map(str, descriptors)),
                stdin=DEVNULL,
                pass_fds=descriptors,
            )
    except BaseException:
        channel.close()
        raise
    return process, channel


def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()


def _describe_exit(status: int) -> str:
    """Describe in words how a process has ended.

    Args:
        status: The result of `Process.wait`. A negative status is the number of a signal.
    """
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"was killed by signal {-status}"
