"""The supervisor of the workers: keeps them running, and every listening socket served.

Counts that are made in other processes are known here within `PULSE` seconds, and at once when a replica
fails. A replica that has left is known to be idle for certain all the same (see `leases`).
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import structlog

from loadbalancer.tls import Certificate
from loadbalancer.workers.handle import ENDS_WITHIN, State, WorkerContext, WorkerHandle
from loadbalancer.workers.messages import PULSE
from loadbalancer.workers.sharing import share_out

STEADY = 10.0
"""Seconds after which the end of a worker does not count as a failure to start."""

PAUSE, LONGEST_PAUSE = 0.1, 10.0
"""Seconds before a worker is started again: doubled for each one in a row that was not steady."""

log = structlog.get_logger("loadbalancer.workers")


class Supervisor:
    """Keeps the workers running; made by `supervise`.

    Args:
        context: What all workers have in common.
        listeners: A listening socket for each worker. They stay open here, so that connections that wait in
            the socket of a worker that has ended can be accepted by another.
    """

    def __init__(self, context: WorkerContext, listeners: Sequence[socket.socket]) -> None:
        self._context = context
        self._listeners = listeners
        self._workers = [
            WorkerHandle(context, number, self._changed) for number in range(1, len(listeners) + 1)
        ]
        self._ready = asyncio.Event()
        self._ending = asyncio.Event()
        self._ended = asyncio.Event()

    async def ready(self) -> None:
        """Return when all workers have served at the same time."""
        await self._ready.wait()

    async def drain(self, patience: float) -> None:
        """Have the workers take no more connections, and return when all have ended, or when time is up.

        Args:
            patience: Seconds for requests in flight; the processes have `ENDS_WITHIN` seconds more to end.
        """
        self._ending.set()
        for worker in self._workers:
            worker.drain(patience)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience + ENDS_WITHIN):
                await self._ended.wait()

    async def end(self) -> None:
        """Kill the workers that are left, and return when all have ended."""
        self._ending.set()
        for worker in self._workers:
            worker.kill()
        await self._ended.wait()

    def renew(self, certificate: Certificate) -> None:
        """Have the workers use another certificate."""
        for worker in self._workers:
            worker.renew(certificate)

    # -- within -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the workers running, until `drain` or `end` is called."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for worker in self._workers:
                    tasks.create_task(self._keep(worker), name=f"worker {worker.number}")
                tasks.create_task(self._send_rotations(), name="rotations for the workers")
        finally:
            self._ended.set()

    async def _keep(self, worker: WorkerHandle) -> None:
        """Start a worker again whenever it ends, without haste when it does not last."""
        clock = asyncio.get_running_loop().time
        failed_starts = 0
        while not self._ending.is_set():
            began = clock()
            try:
                how = await worker.run(self._listeners)
            except OSError as error:
                how = f"could not be started: {error}"
            if self._ending.is_set():
                return
            log.error("worker lost", worker=worker.number, reason=how)
            failed_starts = failed_starts + 1 if clock() - began < STEADY else 0
            with suppress(TimeoutError):
                async with asyncio.timeout(min(PAUSE * 2.0**failed_starts, LONGEST_PAUSE)):
                    await self._ending.wait()

    async def _send_rotations(self) -> None:
        while not self._ending.is_set() or any(worker.state is not State.ENDED for worker in self._workers):
            for worker in self._workers:
                worker.send_rotation()
            with suppress(TimeoutError):
                async with asyncio.timeout(PULSE):
                    await self._context.source.next_snapshot()

    def _changed(self) -> None:
        """The state of a worker has changed: share the listening sockets out again."""
        serving = [worker.state is State.SERVING for worker in self._workers]
        if all(serving):
            self._ready.set()
        if not self._ending.is_set():
            for worker, sockets in zip(self._workers, share_out(serving), strict=True):
                worker.accept(sockets)


@asynccontextmanager
async def supervise(context: WorkerContext, listeners: Sequence[socket.socket]) -> AsyncIterator[Supervisor]:
    """Run workers for as long as a `with` block lasts.

    Args:
        context: What all workers have in common.
        listeners: A listening socket for each worker.
    """
    supervisor = Supervisor(context, listeners)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(supervisor.run(), name="supervisor of the workers")
        try:
            yield supervisor
        finally:
            await supervisor.end()
