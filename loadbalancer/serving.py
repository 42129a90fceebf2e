"""Serves clients on the port, by one lane or the other, until told to stop.

The fast lane takes the port itself, in this process or in workers, and Hypercorn serves the admin
application on a private Unix socket behind it. With the ASGI lane Hypercorn takes the port, and
the dispatcher stands in front of both.
"""

import asyncio
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog
from hypercorn.typing import ASGIFramework

from loadbalancer.listening import BACKLOG
from loadbalancer.proxy.accounting import Accounting
from loadbalancer.proxy.asgi.dispatcher import Dispatcher
from loadbalancer.proxy.asgi.http2 import Http2, open_http2
from loadbalancer.proxy.asgi.hypercorn_options import HypercornOptions
from loadbalancer.proxy.asgi.lane import AsgiLane
from loadbalancer.proxy.asgi.server import serve
from loadbalancer.proxy.fast.lane import FastLane
from loadbalancer.routing.snapshot import SnapshotSource
from loadbalancer.settings import Settings
from loadbalancer.tls import Certificate
from loadbalancer.workers.handle import WorkerContext
from loadbalancer.workers.succession import announce, name_of
from loadbalancer.workers.supervisor import Supervisor, supervise

CUT_OFF_WITHIN = 1.0
"""Seconds for connections to end once there is no time left."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""The signals that end the load balancer."""

T = TypeVar("T")

log = structlog.get_logger("loadbalancer")


class Shutdown:
    """The end that SIGTERM and SIGINT ask for: the first signal to stop, a second one to hurry."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._signalled)

    def close(self) -> None:
        """Ignore the signals from now on: the end that they ask for has come.

        Their default action would end the process with another status while the interpreter shuts down.
        They are blocked in between, so that no signal meets that action.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        for number in SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    async def out_of_time(self, patience: float) -> None:
        """Return when there is a hurry, or when so many seconds have passed since the first signal."""
        await self.asked.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self.hurried.wait()

    async def unless_hurried(self, work: Awaitable[T]) -> T | None:
        """Wait for work to be done, but break it off when there is a hurry.

        Returns:
            Its result; None if it was broken off.
        """
        return await _unless(self.hurried.wait(), work)

    async def unless_out_of_time(self, work: Awaitable[T], patience: float) -> T | None:
        """Wait for work to be done, but break it off once it is out of time.

        Args:
            work: Is cancelled when it is broken off.
            patience: Seconds that the work still has after the first signal.

        Returns:
            Its result; None if it was broken off.
        """
        return await _unless(self.out_of_time(patience), work)

    def _signalled(self) -> None:
        (self.hurried if self.asked.is_set() else self.asked).set()


async def _unless(limit: Coroutine[Any, Any, object], work: Awaitable[T]) -> T | None:
    """Wait for work to be done, but break it off when the limit returns first."""
    working, limiting = asyncio.ensure_future(work), asyncio.create_task(limit)
    try:
        await asyncio.wait({working, limiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        working.cancel()
        limiting.cancel()
        await asyncio.wait({working, limiting})
    return None if working.cancelled() else working.result()


@dataclass(frozen=True)
class Front:
    """Serves the clients.

    Args:
        settings: The choice of the lane, and its time-outs.
        source: Publishes the snapshots that requests go by.
        accounting: Where requests are counted and logged.
        admin: Answers for the admin paths.
        when_stopping: Called when no new requests are taken any more.
        certificate: The certificate that clients are served with; None: plain HTTP.
    """

    settings: Settings
    source: SnapshotSource
    accounting: Accounting
    admin: ASGIFramework
    when_stopping: Callable[[], None]
    certificate: Certificate | None = None

    async def serve(
        self, listeners: Sequence[socket.socket], claim: socket.socket | None, shutdown: Shutdown
    ) -> None:
        """Serve until told to stop; then let requests in flight end, for as long as replicas may drain.

        Args:
            listeners: Listening sockets: one, or one for each worker.
            claim: Held by the one load balancer that serves the port with workers; None without workers.
            shutdown: Says when to stop, and when to hurry.
        """
        if self.settings.lane == "asgi":
            await self._serve_asgi(listeners[0], shutdown)
        elif claim is None:
            await self._serve_fast(listeners[0], shutdown)
        else:
            await self._serve_by_workers(listeners, claim, shutdown)

    async def _serve_asgi(self, listener: socket.socket, shutdown: Shutdown) -> None:
        async with AsgiLane(self.source, self.settings, self.accounting) as lane:
            dispatcher = Dispatcher(self.admin, lane)

            async def until_stopped() -> None:
                await shutdown.asked.wait()
                dispatcher.closing = True
                self._stopping()

            options = HypercornOptions(self.settings, [f"fd://{listener.detach()}"], self.certificate)
            await self._serve_by_hypercorn(dispatcher, options, until_stopped, shutdown)

    async def _serve_fast(self, listener: socket.socket, shutdown: Shutdown) -> None:
        async with (
            self._admin_socket(shutdown) as admin,
            self._http2() as http2,
            FastLane(self.source, self.settings, self.accounting, admin, http2) as lane,
        ):
            await lane.listen(listener, self.certificate.context if self.certificate else None)
            await shutdown.asked.wait()
            self._stopping()
            await shutdown.unless_hurried(lane.drain(self.settings.drain_timeout))

    async def _serve_by_workers(
        self, listeners: Sequence[socket.socket], claim: socket.socket, shutdown: Shutdown
    ) -> None:
        # Replicas that are processes end with the control plane, and so must its workers.
        succession = name_of(claim) if self.settings.effective_backend() == "docker" else ""
        async with self._admin_socket(shutdown) as admin:
            context = WorkerContext(
                self.source, self.settings, self.accounting.metrics, admin, succession, self.certificate
            )
            async with supervise(context, listeners) as supervisor:
                if self.certificate is not None:
                    _renew_at_sighup(self.certificate, supervisor)
                async with asyncio.TaskGroup() as tasks:
                    announcing = tasks.create_task(_announce(supervisor, claim, len(listeners)))
                    await shutdown.asked.wait()
                    announcing.cancel()
                self._stopping()
                for listener in listeners:
                    listener.close()  # the workers have them still, and close them when they drain
                await shutdown.unless_hurried(supervisor.drain(self.settings.drain_timeout))

    @asynccontextmanager
    async def _admin_socket(self, shutdown: Shutdown) -> AsyncIterator[str]:
        """Serve the admin application on a Unix socket; yields its path."""
        with tempfile.TemporaryDirectory(prefix="loadbalancer-") as folder:
            path = str(Path(folder) / "admin")
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(path)
            listener.listen(BACKLOG)  # now, so that the first request finds it, whoever is ready first
            drained = asyncio.Event()
            only = Dispatcher(self.admin, self.admin)
            options = HypercornOptions(self.settings, [f"fd://{listener.detach()}"])
            serving = asyncio.create_task(self._serve_by_hypercorn(only, options, drained.wait, shutdown))
            try:
                yield path
            finally:
                drained.set()
                await serving

    @asynccontextmanager
    async def _http2(self) -> AsyncIterator[Http2 | None]:
        """What the fast lane hands over; nobody asks for it without TLS."""
        if self.certificate is None:
            yield None
            return
        async with open_http2(self.source, self.settings, self.accounting, self.admin) as http2:
            yield http2

    def _stopping(self) -> None:
        log.info("stopping")
        self.when_stopping()

    async def _serve_by_hypercorn(
        self,
        app: Dispatcher,
        options: HypercornOptions,
        until_stopped: Callable[[], Awaitable[object]],
        shutdown: Shutdown,
    ) -> None:
        serving = asyncio.create_task(serve(app, options, until_stopped))
        out_of_time = asyncio.create_task(shutdown.out_of_time(self.settings.drain_timeout + CUT_OFF_WITHIN))
        await asyncio.wait({serving, out_of_time}, return_when=asyncio.FIRST_COMPLETED)
        out_of_time.cancel()
        if not serving.done():
            serving.cancel()
            # A client that reads nothing of its answer holds even this up; closing the loop cuts it off.
            await asyncio.wait({serving}, timeout=CUT_OFF_WITHIN)


def _renew_at_sighup(certificate: Certificate, supervisor: Supervisor) -> None:
    def renew() -> None:
        if certificate.reload():
            supervisor.renew(certificate)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, renew)


async def _announce(supervisor: Supervisor, claim: socket.socket, workers: int) -> None:
    """Once all workers serve, tell the workers of a predecessor that they may end."""
    await supervisor.ready()
    log.info("workers ready", workers=workers)
    async with await announce(claim) as server:
        await server.serve_forever()
