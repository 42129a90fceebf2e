"""Serving clients on the port, by one lane or the other, until told to stop.

The fast lane takes the port itself, in this process or in workers, and Hypercorn serves the admin
application on a private Unix socket behind it. With the ASGI lane Hypercorn takes the port, and
the dispatcher stands in front of both.
"""

import asyncio
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import hypercorn.asyncio
import structlog
from hypercorn.typing import ASGIFramework

from loadbalancer.listening import BACKLOG, Listeners
from loadbalancer.proxy.accounting import Accounting
from loadbalancer.proxy.asgi.dispatcher import Dispatcher
from loadbalancer.proxy.asgi.http2 import Http2, open_http2
from loadbalancer.proxy.asgi.hypercorn_options import HypercornOptions
from loadbalancer.proxy.asgi.lane import AsgiLane
from loadbalancer.proxy.fast.lane import FastLane
from loadbalancer.routing.snapshot import SnapshotSource
from loadbalancer.settings import Settings
from loadbalancer.tls import Certificate
from loadbalancer.workers.crew import Crew, Employer
from loadbalancer.workers.succession import announce, name_of

CUT_OFF_WITHIN = 1.0
"""Seconds for connections to end once there is no time left."""

log = structlog.get_logger("loadbalancer")


class Shutdown:
    """What SIGTERM and SIGINT ask for: the first to stop, a second to hurry."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)

    async def out_of_time(self, patience: float) -> None:
        """Return when there is a hurry, or when so many seconds have passed since the first signal."""
        await self.asked.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self.hurried.wait()

    async def unless_hurried(self, work: Awaitable[None]) -> None:
        """Wait for something to be done, but not when there is a hurry."""
        tasks = {asyncio.ensure_future(work), asyncio.ensure_future(self.hurried.wait())}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    def _signalled(self) -> None:
        (self.hurried if self.asked.is_set() else self.asked).set()


@dataclass(frozen=True)
class Front:
    """What clients see.

    Args:
        settings: Which lane, and its time-outs.
        source: Publishes the snapshots that requests go by.
        accounting: Where requests are counted and logged.
        admin: Answers for the admin paths.
        when_stopping: Called when no new requests are taken any more.
        certificate: What clients are served with; None: plain HTTP.
    """

    settings: Settings
    source: SnapshotSource
    accounting: Accounting
    admin: ASGIFramework
    when_stopping: Callable[[], None]
    certificate: Certificate | None = None

    async def serve(self, listeners: Listeners, shutdown: Shutdown) -> None:
        """Serve until told to stop; then let requests in flight end, for as long as replicas may drain.

        Args:
            listeners: Bound sockets: one, or one for each worker.
            shutdown: Says when to stop, and when to hurry.
        """
        if self.settings.lane == "asgi":
            await self._serve_asgi(listeners.sockets[0], shutdown)
        elif self.settings.workers == 1:
            await self._serve_fast(listeners.sockets[0], shutdown)
        else:
            await self._serve_by_workers(listeners, shutdown)

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

    async def _serve_by_workers(self, listeners: Listeners, shutdown: Shutdown) -> None:
        succession = ""
        if listeners.succession is not None and self.settings.effective_backend() == "docker":
            # Replicas that are processes would end with the control plane, and so must its workers.
            succession = name_of(listeners.succession)
        async with self._admin_socket(shutdown) as admin:
            employer = Employer(self.source, self.settings, self.accounting.metrics, admin, succession)
            async with Crew(employer, listeners.sockets) as crew:
                if self.certificate is not None:
                    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, crew.reload)
                announcing = asyncio.create_task(_announce(crew, listeners))
                await shutdown.asked.wait()
                announcing.cancel()
                await asyncio.gather(announcing, return_exceptions=True)
                self._stopping()
                for listener in listeners.sockets:
                    listener.close()  # the workers have them still, and close them when they drain
                await shutdown.unless_hurried(crew.drain(self.settings.drain_timeout))

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
        until_stopped: Callable[..., object],
        shutdown: Shutdown,
    ) -> None:
        serving = asyncio.create_task(
            hypercorn.asyncio.serve(app, options, shutdown_trigger=until_stopped)  # type: ignore[arg-type]
        )
        out_of_time = asyncio.create_task(shutdown.out_of_time(self.settings.drain_timeout + CUT_OFF_WITHIN))
        await asyncio.wait({serving, out_of_time}, return_when=asyncio.FIRST_COMPLETED)
        out_of_time.cancel()
        if not serving.done():
            serving.cancel()
            # A client that reads nothing of its answer holds even this up; closing the loop cuts it off.
            await asyncio.wait({serving}, timeout=CUT_OFF_WITHIN)


async def _announce(crew: Crew, listeners: Listeners) -> None:
    """Once all workers serve, tell those of a predecessor that they may go."""
    await crew.ready()
    log.info("workers ready", workers=len(listeners.sockets))
    if listeners.succession is not None:
        async with await announce(listeners.succession) as server:
            await server.serve_forever()
