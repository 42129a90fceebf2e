"""Replicas as local processes on loopback ports: the embedded default, no Docker needed.

A replica is any command that serves HTTP on `$PORT`. It runs in a session and process group of its
own, so that signals meant for the load balancer's terminal do not reach it and signals meant for it
reach its children. Its output goes to the log under its name. A guard process ends all groups when the
load balancer dies without having done so.
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
from pathlib import Path

import structlog

from loadbalancer.errors import BackendError
from loadbalancer.fleet.backends import guard, reasons
from loadbalancer.fleet.backends.base import Found, Instance, ReplicaSpec

LOOPBACK = "127.0.0.1"

PORTS = range(20_000, 30_000)
"""Below the range from which Linux and macOS take ports for outgoing connections, whose use would
otherwise race with a replica's."""

MAX_LINE = 64 * 1024
"""Bytes of one line of output after which it is logged in pieces."""

LAST_WORDS = 1.0
"""Seconds that output may still come after a process has ended."""

log = structlog.get_logger(__name__)


class _Running:
    """A process, the group it leads, and the task that logs its output and sees it end."""

    def __init__(self, process: asyncio.subprocess.Process, instance: Instance, port: int) -> None:
        self.process = process
        self.instance = instance
        self.port = port
        self.tail: deque[str] = deque(maxlen=reasons.OUTPUT_LINES)
        self.task: asyncio.Task[None] | None = None


class ProcessBackend:
    """Runs each replica as a process.

    Args:
        command: Command line of a replica, split as a shell would. `python` means the interpreter
            that runs the load balancer. It gets `PORT`, `HOSTNAME` and `SERVER_ID` in its environment.
        rng: Source of port numbers.
    """

    name = "process"

    def __init__(self, command: str, rng: random.Random | None = None) -> None:
        self._argv = shlex.split(command)
        self._rng = rng or random.Random()
        self._running: dict[str, _Running] = {}
        self._ports: set[int] = set()
        self._guard: subprocess.Popen[bytes] | None = None
        self._clearing: set[asyncio.Task[None]] = set()
        # So that `python -m server` finds the same interpreter and packages as the load balancer.
        self._path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])

    async def open(self) -> None:
        """Check that the command exists, and start the guard."""
        program = self._argv[0]
        if shutil.which(program, path=self._path) is None:
            raise BackendError(
                f"--command: there is no program '{program}' on the PATH: name one that serves HTTP on $PORT"
            )
        self._guard = subprocess.Popen(  # noqa: ASYNC220 - vfork returns in a millisecond, once
            [sys.executable, "-I", "-S", guard.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    async def close(self) -> None:
        """Wait for discarded processes to end, and let the guard go."""
        await asyncio.gather(*self._clearing, *(run.task for run in self._running.values() if run.task))
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            await asyncio.to_thread(self._guard.wait)

    def check_name(self, hostname: str) -> None:
        """Any hostname will do."""

    async def adopt(self) -> list[Found]:
        """Processes never outlive their load balancer: there is nothing to adopt."""
        return []

    async def start(self, spec: ReplicaSpec) -> Instance:
        """Start the command on a free loopback port."""
        port = self._reserve_port()
        # Our own pipe: with asyncio's, a child that keeps the output open would hide the parent's end.
        output, output_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=subprocess.DEVNULL,
                stdout=output_end,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={
                    **os.environ,
                    "PATH": self._path,
                    "PORT": str(port),
                    "HOSTNAME": spec.hostname,
                    "SERVER_ID": spec.hostname,
                },
            )
        except BaseException as error:
            os.close(output)
            self._ports.discard(port)
            if isinstance(error, OSError):
                raise BackendError(
                    f"{spec.hostname}: cannot run '{self._argv[0]}': {error.strerror}"
                ) from error
            raise
        finally:
            os.close(output_end)
        self._tell_guard("+", process.pid)
        running = _Running(process, Instance(str(process.pid), LOOPBACK, port), port)
        self._running[running.instance.id] = running
        running.task = asyncio.create_task(
            self._follow(running, spec.hostname, output), name=f"{spec.hostname} output"
        )
        return running.instance

    async def stop(self, instance: Instance, grace: float) -> None:
        """Send SIGTERM to the group, SIGKILL after the grace, and wait for the end."""
        running = self._running.get(instance.id)
        if running is None or running.task is None:
            return
        if grace > 0:
            self._signal(running, signal.SIGTERM)
            await asyncio.wait({running.task}, timeout=grace)
        self._signal(running, signal.SIGKILL)
        await asyncio.shield(running.task)

    async def discard(self, instance: Instance) -> None:
        """Kill it; the next start takes another port, so there is nothing to wait for."""
        task = asyncio.create_task(self.stop(instance, 0))
        self._clearing.add(task)
        task.add_done_callback(self._clearing.discard)

    async def release(self, spec: ReplicaSpec) -> None:
        """Nothing is left of a process that has ended."""

    # -- within -------------------------------------------------------------------------------------

    async def _follow(self, running: _Running, hostname: str, output: int) -> None:
        """Log what the process says until it ends, and say why it has ended."""
        reader = asyncio.StreamReader(limit=MAX_LINE)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(output, "rb", buffering=0)
        )
        reading = asyncio.create_task(self._log_output(reader, hostname, running.tail))
        status = await running.process.wait()
        if not running.instance.lost.done():
            running.instance.lost.set_result(
                reasons.killed(-status) if status < 0 else reasons.exited(status)
            )
        # What is left of the group would hold the output open, and the port. A child in a session of
        # its own may hold the output for ever: do not wait for it.
        self._signal(running, signal.SIGKILL)
        await asyncio.wait({reading}, timeout=LAST_WORDS)
        reading.cancel()
        transport.close()
        self._tell_guard("-", running.process.pid)
        self._running.pop(running.instance.id, None)
        self._ports.discard(running.port)
        running.instance.last_words.set_result(reasons.last_words(running.tail))

    @staticmethod
    async def _log_output(output: asyncio.StreamReader, hostname: str, tail: deque[str]) -> None:
        while True:
            try:
                line = await output.readline()
            except ValueError:  # longer than MAX_LINE: StreamReader has dropped it
                log.info("output", replica=hostname, line=f"(a line of more than {MAX_LINE} bytes)")
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            tail.append(text)
            log.info("output", replica=hostname, line=text)

    def _reserve_port(self) -> int:
        for port in self._rng.sample(PORTS, len(PORTS)):
            if port not in self._ports and _is_free(port):
                self._ports.add(port)
                return port
        raise BackendError(f"no free port for a replica from {PORTS.start} to {PORTS.stop - 1}")

    def _tell_guard(self, sign: str, group: int) -> None:
        if self._guard is None or self._guard.stdin is None:
            return
        try:
            self._guard.stdin.write(f"{sign}{group}\n".encode())
            self._guard.stdin.flush()
        except BrokenPipeError:
            log.error("the guard has ended: replicas would outlive a killed load balancer")

    @staticmethod
    def _signal(running: _Running, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(running.process.pid, number)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do, or ports in TIME_WAIT would look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
