"""Serves clients on the port, by one lane or the other, until told to stop.

The fast lane takes the port itself, in this process or in workers, and Hypercorn serves the admin
application on a private Unix socket behind it. With the ASGI lane Hypercorn takes the port, and
the dispatcher stands in front of both.
"""

import asyncio
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

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
from loadbalancer.proxy.router import Router
from loadbalancer.routing.snapshot import SnapshotSource
from loadbalancer.settings import Settings
from loadbalancer.shutdown import Shutdown
from loadbalancer.tasks import Service
from loadbalancer.tls import Certificate
from loadbalancer.workers.handle import WorkerContext
from loadbalancer.workers.succession import announce, name_of
from loadbalancer.workers.supervisor import Supervisor, supervise

CUT_OFF_WITHIN = 1.0
"""Seconds in which connections must end when their time is up."""

log = structlog.get_logger("loadbalancer")


@dataclass(frozen=True)
class Front:
    """Serves the clients.

    Args:
        settings: The choice of the lane, and its time-outs.
        source: Publishes the snapshots that requests use.
        accounting: Where requests are counted and logged.
        admin: Answers the requests for admin paths.
        when_stopping: Called when the load balancer stops to accept requests.
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
        """Serve until told to stop; then wait for the requests in flight, within the time limit of a drain.

        Args:
            listeners: Listening sockets: one, or one for each worker.
            claim: The claim to serve the port with workers; None without workers.
            shutdown: Tells when to stop, and when to hurry.
        """
        if self.settings.lane == "asgi":
            await self._serve_asgi(listeners[0], shutdown)
        elif claim is None:
            await self._serve_fast(listeners[0], shutdown)
        else:
            await self._serve_by_workers(listeners, claim, shutdown)

    async def _serve_asgi(self, listener: socket.socket, shutdown: Shutdown) -> None:
        router = Router.of(self.source, self.settings)
        async with AsgiLane(router, self.settings, self.accounting) as lane:
            dispatcher = Dispatcher(self.admin, lane)

            async def until_stopped() -> None:
                await shutdown.asked.wait()
                dispatcher.closing = True
                self._stopping()

            server = self._hypercorn(
                dispatcher, listener, until_stopped, "server of the ASGI lane", self.certificate
            )
            server.start()
            await self._end(server, shutdown)

    async def _serve_fast(self, listener: socket.socket, shutdown: Shutdown) -> None:
        router = Router.of(self.source, self.settings)
        async with (
            self._admin_socket(shutdown) as admin,
            self._http2(router) as http2,
            FastLane(router, self.settings, self.accounting, admin, http2) as lane,
        ):
            await lane.listen(listener, self.certificate.context if self.certificate else None)
            await shutdown.asked.wait()
            self._stopping()
            await shutdown.unless_hurried(lane.drain(self.settings.drain_timeout))

    async def _serve_by_workers(
        self, listeners: Sequence[socket.socket], claim: socket.socket, shutdown: Shutdown
    ) -> None:
        # Replicas that are processes end with the control plane. Its workers must then end as well.
        succession = name_of(claim) if self.settings.effective_backend() == "docker" else ""
        async with self._admin_socket(shutdown) as admin:
            context = WorkerContext(
                self.source, self.settings, self.accounting.metrics, admin, succession, self.certificate
            )
            async with supervise(context, listeners) as supervisor:
                if self.certificate is not None:
                    shutdown.on_hangup = _renewal(self.certificate, supervisor)
                announcing = Service(lambda: _announce(supervisor, claim, len(listeners)), "announcement")
                announcing.start()
                try:
                    await shutdown.asked.wait()
                finally:
                    await announcing.stop()
                self._stopping()
                for listener in listeners:
                    listener.close()  # The workers have copies, and close them when they drain.
                await shutdown.unless_hurried(supervisor.drain(self.settings.drain_timeout))

    @asynccontextmanager
    async def _admin_socket(self, shutdown: Shutdown) -> AsyncIterator[str]:
        """Serve the admin application on a Unix socket, and yield the path of the socket."""
        with tempfile.TemporaryDirectory(prefix="loadbalancer-") as folder:
            path = str(Path(folder) / "admin")
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with listener:
                listener.bind(path)
                listener.listen(BACKLOG)  # Requests may come before the server is ready.
                drained = asyncio.Event()
                app = Dispatcher(self.admin, self.admin)
                server = self._hypercorn(app, listener, drained.wait, "admin server")
                server.start()
                try:
                    yield path
                finally:
                    drained.set()
                    await self._end(server, shutdown)

    @asynccontextmanager
    async def _http2(self, router: Router) -> AsyncIterator[Http2 | None]:
        """Serve the HTTP/2 connections that the fast lane hands over. Without TLS there are none."""
        if self.certificate is None:
            yield None
            return
        async with open_http2(router, self.settings, self.accounting, self.admin) as http2:
            yield http2

    def _stopping(self) -> None:
        log.info("stopping")
        self.when_stopping()

    def _hypercorn(
        self,
        app: Dispatcher,
        listener: socket.socket,
        until_stopped: Callable[[], Awaitable[object]],
        name: str,
        certificate: Certificate | None = None,
    ) -> Service:
        """Make a server that is resumed after a fault; connections then wait in the queue of the listener.

        Args:
            app: Answers the requests.
            listener: Is closed when the server is told to stop.
            until_stopped: Returns when the server takes no new requests.
            name: Name of the server in the log.
            certificate: The certificate that clients are served with; None: plain HTTP.
        """

        async def until_listener_closed() -> None:
            await until_stopped()
            listener.close()

        async def serve_once() -> None:
            options = HypercornOptions(self.settings, [f"fd://{os.dup(listener.fileno())}"], certificate)
            await serve(app, options, until_listener_closed)

        return Service(serve_once, name)

    async def _end(self, server: Service, shutdown: Shutdown) -> None:
        """Wait until a server has ended, but not for longer than requests have after the first signal."""
        try:
            await shutdown.unless_out_of_time(
                asyncio.shield(server.ended), self.settings.drain_timeout + CUT_OFF_WITHIN
            )
        finally:
            # A client that does not read its answer delays the end; its connection breaks with the loop.
            await server.stop(CUT_OFF_WITHIN)


def _renewal(certificate: Certificate, supervisor: Supervisor) -> Callable[[], None]:
    def renew() -> None:
        if certificate.reload():
            supervisor.renew(certificate)

    return renew


async def _announce(supervisor: Supervisor, claim: socket.socket, workers: int) -> None:
    """Once all workers serve, tell the workers of a predecessor that they may end."""
    await supervisor.ready()
    log.info("workers ready", workers=workers)
    async with await announce(claim.dup()) as server:
        await server.serve_forever()
