"""The worker process: a fast lane that is fed by the control plane. Started by `crew`, with two sockets.

It ignores the signals that are meant for the whole load balancer: the control plane tells it when to end.
When that is gone without a word, it goes on for as long as its replicas do: with containers, until a
successor serves; with processes, which end with their parent, it ends too.
"""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator

import structlog
import uvloop
from pydantic import BaseModel

from loadbalancer.proxy.accounting import Accounting
from loadbalancer.proxy.asgi.http2 import Http2, open_http2
from loadbalancer.proxy.asgi.remote_admin import open_remote_admin
from loadbalancer.proxy.fast.lane import FastLane
from loadbalancer.routing.snapshot import SnapshotSource
from loadbalancer.settings import Settings
from loadbalancer.telemetry.logs import configure as configure_logs
from loadbalancer.telemetry.metrics import Metrics
from loadbalancer.tls import Certificate
from loadbalancer.workers import messages
from loadbalancer.workers.follower import Follower
from loadbalancer.workers.messages import MAX_LINE, PULSE
from loadbalancer.workers.succession import successor

log = structlog.get_logger("loadbalancer.workers")


def main() -> None:
    """Serve until told to end."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    channel, listener = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_work(channel, listener))


async def _work(channel: socket.socket, listener: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=channel, limit=MAX_LINE)
    try:
        begin = messages.Begin.model_validate_json(await reader.readline())
        settings = _share(Settings.model_validate(begin.settings))
        configure_logs(settings.log_format, settings.log_level)

        def tell(message: BaseModel) -> None:
            if not writer.is_closing():
                writer.write(messages.line(message))

        metrics = Metrics()
        follower = Follower(settings, metrics, tell)
        accounting = Accounting(metrics, access_log=settings.access_log)
        certificate = Certificate.of(settings)
        async with (
            _http2(follower.publication, settings, accounting, begin.admin, certificate) as http2,
            FastLane(follower.publication, settings, accounting, begin.admin, http2) as lane,
        ):
            reporting = asyncio.create_task(_report(follower))
            try:
                await _obey(reader, lane, follower, listener, certificate, tell)
                if begin.succession and not lane.closing:
                    log.warning("the control plane has gone: serving on until another takes over")
                    if not await successor(begin.succession):
                        log.error("no other control plane has taken over")
                if not lane.closing and begin.succession:
                    await lane.drain(settings.drain_timeout)
            finally:
                reporting.cancel()
            follower.report(asyncio.get_running_loop().time())
    finally:
        writer.close()


async def _obey(
    reader: asyncio.StreamReader,
    lane: FastLane,
    follower: Follower,
    listener: socket.socket,
    certificate: Certificate | None,
    tell: messages.Tell,
) -> None:
    """Do what the control plane says, until it has nothing more to say."""
    listening = False
    with contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            order = messages.orders.validate_json(line)
            if isinstance(order, messages.Rotation):
                follower.follow(order)
                if not listening:
                    listening = True
                    await lane.listen(listener, certificate.context if certificate else None)
                    tell(messages.Ready())
            elif isinstance(order, messages.Reload) and certificate is not None:
                certificate.reload()
            elif isinstance(order, messages.Drain):
                await lane.drain(order.patience)
                return


async def _report(follower: Follower) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(PULSE)
        follower.report(loop.time())


@contextlib.asynccontextmanager
async def _http2(
    source: SnapshotSource,
    settings: Settings,
    accounting: Accounting,
    admin: str,
    certificate: Certificate | None,
) -> AsyncIterator[Http2 | None]:
    if certificate is None:
        yield None
        return
    async with (
        open_remote_admin(admin, settings) as remote,
        open_http2(source, settings, accounting, remote) as http2,
    ):
        yield http2


def _share(settings: Settings) -> Settings:
    """This worker's share of what is bounded in all, rounded up."""
    shared = {
        name: -(-getattr(settings, name) // settings.workers) for name in ("queue_size", "max_connections")
    }
    return settings.model_copy(update=shared)


if __name__ == "__main__":
    main()
