"""Serving clients on the port, by one lane or the other, until told to stop.

The fast lane takes the port itself, and Hypercorn serves the load balancer's own pages on a private Unix
socket behind it. With the ASGI lane Hypercorn takes the port, and the dispatcher stands in front of both.
"""

import asyncio
import logging
import signal
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import hypercorn.asyncio
import structlog
from hypercorn.config import Config as HypercornConfig
from hypercorn.typing import ASGIFramework

from loadbalancer.proxy.accounting import Accounting
from loadbalancer.proxy.asgi import AsgiLane
from loadbalancer.proxy.dispatcher import Dispatcher
from loadbalancer.proxy.fast.lane import BACKLOG, FastLane
from loadbalancer.proxy.http2 import Http2
from loadbalancer.proxy.websocket import MAX_MESSAGE
from loadbalancer.routing.snapshot import SnapshotSource
from loadbalancer.settings import Settings
from loadbalancer.tls import Certificate

CUT_OFF_WITHIN = 1.0
"""Seconds for connections to end once there is no time left."""

log = structlog.get_logger("loadbalancer")


class _Config(HypercornConfig):
    """Hypercorn's options, with a certificate that can be renewed."""

    def __init__(self, certificate: Certificate | None) -> None:
        super().__init__()
        self._certificate = certificate

    @property
    def ssl_enabled(self) -> bool:
        return self._certificate is not None

    def create_ssl_context(self) -> ssl.SSLContext | None:
        return self._certificate.context if self._certificate is not None else None


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

    def _signalled(self) -> None:
        (self.hurried if self.asked.is_set() else self.asked).set()


@dataclass(frozen=True)
class Front:
    """What clients see.

    Args:
        settings: Which lane, and its time-outs.
        source: Publishes the snapshots that requests go by.
        accounting: Where requests are counted and logged.
        api: Answers for the load balancer's own paths.
        when_stopping: Called when no new requests are taken any more.
        certificate: What clients are served with; None: plain HTTP.
    """

    settings: Settings
    source: SnapshotSource
    accounting: Accounting
    api: ASGIFramework
    when_stopping: Callable[[], None]
    certificate: Certificate | None = None

    async def serve(self, listener: socket.socket, shutdown: Shutdown) -> None:
        """Serve until told to stop; then let requests in flight end, for as long as replicas may drain.

        Args:
            listener: A bound socket.
            shutdown: Says when to stop, and when to hurry.
        """
        if self.settings.lane == "asgi":
            await self._serve_asgi(listener, shutdown)
        else:
            await self._serve_fast(listener, shutdown)

    async def _serve_asgi(self, listener: socket.socket, shutdown: Shutdown) -> None:
        async with AsgiLane(self.source, self.settings, self.accounting) as lane:
            dispatcher = Dispatcher(self.api, lane)

            async def until_stopped() -> None:
                await shutdown.asked.wait()
                dispatcher.closing = True
                self._stopping()

            config = self._hypercorn_config(listener, self.certificate)
            await self._serve_by_hypercorn(dispatcher, config, until_stopped, shutdown)

    async def _serve_fast(self, listener: socket.socket, shutdown: Shutdown) -> None:
        with tempfile.TemporaryDirectory(prefix="loadbalancer-") as folder:
            pages = str(Path(folder) / "pages")
            drained = asyncio.Event()
            own = Dispatcher(self.api, self.api)
            control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            control.bind(pages)
            control.listen(BACKLOG)  # now, so that the first request finds it, whoever is ready first
            config = self._hypercorn_config(control)
            serving = asyncio.create_task(self._serve_by_hypercorn(own, config, drained.wait, shutdown))
            try:
                async with (
                    self._http2() as http2,
                    FastLane(self.source, self.settings, self.accounting, pages, http2) as lane,
                ):
                    await lane.listen(listener, self.certificate.context if self.certificate else None)
                    await shutdown.asked.wait()
                    self._stopping()
                    draining = asyncio.create_task(lane.drain(self.settings.drain_timeout))
                    hurried = asyncio.create_task(shutdown.hurried.wait())
                    await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
                    for task in (draining, hurried):
                        task.cancel()
            finally:
                drained.set()
                await serving

    @asynccontextmanager
    async def _http2(self) -> AsyncIterator[Http2 | None]:
        """What the fast lane hands over; nobody asks for it without TLS."""
        if self.certificate is None:
            yield None
            return
        async with AsgiLane(self.source, self.settings, self.accounting) as lane:
            yield Http2(Dispatcher(self.api, lane), self._hypercorn_config())

    def _stopping(self) -> None:
        log.info("stopping")
        self.when_stopping()

    def _hypercorn_config(
        self, listener: socket.socket | None = None, certificate: Certificate | None = None
    ) -> HypercornConfig:
        settings = self.settings
        config = _Config(certificate)
        config.bind = [] if listener is None else [f"fd://{listener.detach()}"]
        config.backlog = BACKLOG
        config.graceful_timeout = settings.drain_timeout
        config.keep_alive_timeout = settings.idle_timeout
        config.h11_max_incomplete_size = settings.max_head
        config.websocket_max_message_size = MAX_MESSAGE
        # The replicas' answers pass as they are; ours bring their own date.
        config.include_server_header = config.include_date_header = False
        config.errorlog = logging.getLogger("hypercorn.error")
        return config

    async def _serve_by_hypercorn(
        self,
        app: Dispatcher,
        config: HypercornConfig,
        until_stopped: Callable[..., object],
        shutdown: Shutdown,
    ) -> None:
        serving = asyncio.create_task(
            hypercorn.asyncio.serve(app, config, shutdown_trigger=until_stopped)  # type: ignore[arg-type]
        )
        out_of_time = asyncio.create_task(shutdown.out_of_time(self.settings.drain_timeout + CUT_OFF_WITHIN))
        await asyncio.wait({serving, out_of_time}, return_when=asyncio.FIRST_COMPLETED)
        out_of_time.cancel()
        if not serving.done():
            serving.cancel()
            # A client that reads nothing of its answer holds even this up; closing the loop cuts it off.
            await asyncio.wait({serving}, timeout=CUT_OFF_WITHIN)
