"""Runs replicas as local processes on loopback ports. This is the default and needs no Docker Engine.

A replica is any command that serves HTTP on `$PORT`. It runs in a session and process group of its own, so
that signals from the terminal of the load balancer do not reach it, and signals for the replica reach its
children. Its output goes to the log under its name. A guard process kills all groups if the load balancer
dies first.
"""

import asyncio
import contextlib
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from loadbalancer.errors import BackendError
from loadbalancer.fleet.backends import guard, reasons
from loadbalancer.fleet.backends.base import Found, Instance, ReplicaSpec
from loadbalancer.tasks import Service

LOOPBACK = "127.0.0.1"

PORTS = range(20_000, 30_000)
"""Ports of replicas. Linux and macOS take the ports of outgoing connections from a higher range."""

MAX_LINE = 64 * 1024
"""Longest line of output that is logged, in bytes."""

LAST_WORDS = 1.0
"""Seconds to wait for the rest of the output after a process has ended."""

ENDS_WITHIN = 5.0
"""Seconds in which a process must end after SIGKILL. One that waits for a broken disk may not."""

log = structlog.get_logger(__name__)


class _Running:
    """A process that runs as a replica, and leads a process group.

    Args:
        process: The process.
        hostname: Of the replica.
        port: Of the replica.
        output: Reads the output.
        transport: The pipe that the output comes from.
        follow: Waits for the end of the process.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        hostname: str,
        port: int,
        output: asyncio.StreamReader,
        transport: asyncio.ReadTransport,
        follow: "Callable[[_Running], Coroutine[Any, Any, None]]",
    ) -> None:
        self.process = process
        self.hostname = hostname
        self.port = port
        self.transport = transport
        self.instance = Instance(str(process.pid), LOOPBACK, port)
        self.tail: deque[str] = deque(maxlen=reasons.OUTPUT_LINES)
        """The last lines of the output."""
        self._output = output
        self.logging = Service(self._log_output, f"output of {hostname}")
        self.following = Service(lambda: follow(self), f"process of {hostname}")
        self.logging.start()
        self.following.start()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    async def _log_output(self) -> None:
        while True:
            try:
                line = await self._output.readline()
            except ValueError:  # The line is longer than MAX_LINE. StreamReader has dropped it.
                log.info("output", replica=self.hostname, line=f"(a line of more than {MAX_LINE} bytes)")
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self.tail.append(text)
            log.info("output", replica=self.hostname, line=text)


class ProcessBackend:
    """Runs each replica as a process.

    Args:
        command: Command line of a replica, split as a shell does. `python` is the interpreter that runs
            the load balancer. The environment of the command has `PORT`, `HOSTNAME` and `SERVER_ID`.
        rng: Source of port numbers.
    """

    name = "process"

    def __init__(self, command: str, rng: random.Random | None = None) -> None:
        self._argv = shlex.split(command)
        self._rng = rng or random.Random()
        self._running: dict[str, _Running] = {}
        self._ports: set[int] = set()
        self._guard: subprocess.Popen[bytes] | None = None
        # With this path, `python -m server` finds the interpreter and the packages of the load balancer.
        self._path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])

    async def open(self) -> None:
        """Check that the command exists, and start the guard process."""
        program = self._argv[0]
        if shutil.which(program, path=self._path) is None:
            raise BackendError(
                f"--command: there is no program '{program}' on the PATH: name one that serves HTTP on $PORT"
            )
        self._guard = _start_guard()

    async def close(self) -> None:
        """Kill the processes that are left, and end the guard process."""
        left = list(self._running.values())
        for running in left:
            running.signal(signal.SIGKILL)
        if left:
            await asyncio.wait({running.following.ended for running in left}, timeout=ENDS_WITHIN)
        for running in left:
            await running.following.stop()
            await running.logging.stop()
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            await asyncio.to_thread(self._guard.wait)

    def check_name(self, hostname: str) -> None:
        """Accept every hostname."""

    async def adopt(self) -> list[Found]:
        """Return nothing, because processes never outlive their load balancer."""
        return []

    async def start(self, spec: ReplicaSpec) -> Instance:
        """Start the command on a free loopback port."""
        try:
            port = self._reserve_port()
        except OSError as error:
            raise BackendError(f"{spec.hostname}: cannot look for a free port: {error.strerror}") from error
        try:
            running = await self._spawn(spec, port)
        except BaseException as error:
            self._ports.discard(port)
            if isinstance(error, OSError):
                raise BackendError(
                    f"{spec.hostname}: cannot run '{self._argv[0]}': {error.strerror}"
                ) from error
            raise
        self._running[running.instance.id] = running
        self._tell_guard("+", running.process.pid)
        return running.instance

    async def stop(self, instance: Instance, grace: float) -> None:
        """Send SIGTERM to the group, and SIGKILL after the grace, and wait for the end of the process."""
        running = self._running.get(instance.id)
        if running is None:
            return
        if grace > 0:
            running.signal(signal.SIGTERM)
            await asyncio.wait({running.following.ended}, timeout=grace)
        running.signal(signal.SIGKILL)
        await asyncio.wait({running.following.ended}, timeout=ENDS_WITHIN)
        if not running.following.ended.done():
            raise BackendError(f"{running.hostname} (process {instance.id}) does not end after SIGKILL")

    async def discard(self, instance: Instance) -> None:
        """Kill the process. The next start takes another port, so nothing has to be waited for."""
        if (running := self._running.get(instance.id)) is not None:
            running.signal(signal.SIGKILL)

    async def remove_leftovers(self, spec: ReplicaSpec) -> None:
        """Do nothing, because a process that has ended leaves nothing behind."""

    # -- within -------------------------------------------------------------------------------------

    async def _spawn(self, spec: ReplicaSpec, port: int) -> _Running:
        # A pipe of our own: the pipe of asyncio would stay open as long as any child of the process lives,
        # and asyncio would not report the end of the process before.
        read_end, write_end = os.pipe()
        pipe = os.fdopen(read_end, "rb", buffering=0)
        process: asyncio.subprocess.Process | None = None
        transport: asyncio.ReadTransport | None = None
        try:
            output = asyncio.StreamReader(limit=MAX_LINE)
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(output), pipe
            )
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self._environment(spec, port),
            )
        finally:
            os.close(write_end)
            if process is None:
                (transport or pipe).close()
        return _Running(process, spec.hostname, port, output, transport, self._follow)

    def _environment(self, spec: ReplicaSpec, port: int) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": self._path,
            "PORT": str(port),
            "HOSTNAME": spec.hostname,
            "SERVER_ID": spec.hostname,
        }

    async def _follow(self, running: _Running) -> None:
        """Wait for the end of a process, report how it ended, and clear it away."""
        instance = running.instance
        status = await running.process.wait()
        if not instance.lost.done():
            instance.lost.set_result(reasons.killed(-status) if status < 0 else reasons.exited(status))
        # The rest of the group would keep the port and the output open. A child in a session of its own may
        # keep the output open for ever, so the wait for it is limited.
        running.signal(signal.SIGKILL)
        await asyncio.wait({running.logging.ended}, timeout=LAST_WORDS)
        await running.logging.stop()
        running.transport.close()
        self._tell_guard("-", running.process.pid)
        self._running.pop(instance.id, None)
        self._ports.discard(running.port)
        if not instance.last_words.done():
            instance.last_words.set_result(reasons.last_words(running.tail))

    def _reserve_port(self) -> int:
        for port in self._rng.sample(PORTS, len(PORTS)):
            if port not in self._ports and _is_free(port):
                self._ports.add(port)
                return port
        raise BackendError(f"no free port for a replica from {PORTS.start} to {PORTS.stop - 1}")

    def _tell_guard(self, sign: str, group: int) -> None:
        """Tell the guard process that a process group has started (`+`) or ended (`-`)."""
        if self._guard is None:
            return
        try:
            _write(self._guard, f"{sign}{group}\n")
        except OSError as error:
            log.error("guard process failed, starting another", reason=error.strerror)
            self._guard.kill()
            self._guard.wait()
            self._guard = _start_guard()
            _write(self._guard, "".join(f"+{running.process.pid}\n" for running in self._running.values()))


def _start_guard() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _write(guard_process: "subprocess.Popen[bytes]", lines: str) -> None:
    if guard_process.stdin is not None:
        guard_process.stdin.write(lines.encode())


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Servers set this option too. Without it, ports in TIME_WAIT would look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
