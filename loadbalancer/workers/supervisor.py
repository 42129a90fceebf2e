"""The supervisor of the workers: restarts workers that end, and assigns every listening socket to a worker.

The control plane learns the counts of the workers within `PULSE` seconds, and at once when a request fails.
It knows for certain when a replica that has left is idle (see `leases`).
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import structlog

from loadbalancer.tls import Certificate
from loadbalancer.workers.handle import EXIT_TIMEOUT, State, WorkerContext, WorkerHandle
from loadbalancer.workers.messages import PULSE
from loadbalancer.workers.sharing import assign

STABLE_AFTER = 10.0
"""Seconds of running after which the end of a worker no longer counts as a failed start."""

MIN_PAUSE, MAX_PAUSE = 0.1, 10.0
"""Bounds, in seconds, of the pause before a restart. The pause doubles with each consecutive failed start."""

log = structlog.get_logger("loadbalancer.workers")


class Supervisor:
    """Keeps the workers running. `supervise` makes one.

    Args:
        context: The configuration of all workers.
        listeners: A listening socket for each worker. They stay open in this process. So when a worker ends,
            another one can accept the connections that wait in its socket.
    """

    def __init__(self, context: WorkerContext, listeners: Sequence[socket.socket]) -> None:
        self._context = context
        self._listeners = listeners
        self._workers = [
            WorkerHandle(context, number, self._on_change) for number in range(1, len(listeners) + 1)
        ]
        self._ready = asyncio.Event()
        self._ending = asyncio.Event()
        self._ended = asyncio.Event()

    async def ready(self) -> None:
        """Return once all workers have served at the same time."""
        await self._ready.wait()

    async def drain(self, patience: float) -> None:
        """Make the workers drain, and return when all have ended or the time is up.

        Args:
            patience: Maximum seconds for requests in flight. `EXIT_TIMEOUT` seconds are added for the exit.
        """
        self._ending.set()
        for worker in self._workers:
            worker.drain(patience)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience + EXIT_TIMEOUT):
                await self._ended.wait()

    async def end(self) -> None:
        """Kill the workers that still run, and return when all have ended."""
        self._ending.set()
        for worker in self._workers:
            worker.kill()
        await self._ended.wait()

    def renew(self, certificate: Certificate) -> None:
        """Make the workers use another certificate."""
        for worker in self._workers:
            worker.renew(certificate)

    async def run(self) -> None:
        """Keep the workers running until `drain` or `end` is called."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for worker in self._workers:
                    tasks.create_task(self._keep_running(worker), name=f"worker {worker.number}")
                tasks.create_task(self._send_rotations(), name="rotations for the workers")
        finally:
            self._ended.set()

    # -- internals ----------------------------------------------------------------------------------

    async def _keep_running(self, worker: WorkerHandle) -> None:
        """Restart a worker whenever it ends, after a pause that grows with each failed start."""
        clock = asyncio.get_running_loop().time
        failed_starts = 0
        while not self._ending.is_set():
            started = clock()
            try:
                reason = await worker.run(self._listeners)
            except OSError as error:
                reason = f"could not be started: {error}"
            if self._ending.is_set():
                return
            log.error("worker lost", worker=worker.number, reason=reason)
            failed_starts = failed_starts + 1 if clock() - started < STABLE_AFTER else 0
            with suppress(TimeoutError):
                async with asyncio.timeout(min(MIN_PAUSE * 2.0**failed_starts, MAX_PAUSE)):
                    await self._ending.wait()

    async def _send_rotations(self) -> None:
        while not self._ending.is_set() or any(worker.state is not State.ENDED for worker in self._workers):
            for worker in self._workers:
                worker.send_rotation()
            with suppress(TimeoutError):
                async with asyncio.timeout(PULSE):
                    await self._context.source.next_snapshot()

    def _on_change(self) -> None:
        """Assign the listening sockets again, because the state of a worker has changed."""
        serving = [worker.state is State.SERVING for worker in self._workers]
        if all(serving):
            self._ready.set()
        if not self._ending.is_set():
            for worker, sockets in zip(self._workers, assign(serving), strict=True):
                worker.accept(sockets)


@asynccontextmanager
async def supervise(context: WorkerContext, listeners: Sequence[socket.socket]) -> AsyncIterator[Supervisor]:
    """Run workers for the duration of a `with` block.

    Args:
        context: The configuration of all workers.
        listeners: A listening socket for each worker.
    """
    supervisor = Supervisor(context, listeners)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(supervisor.run(), name="supervisor of the workers")
        try:
            yield supervisor
        finally:
            await supervisor.end()
