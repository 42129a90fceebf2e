"""Builds the whole load balancer from its settings, runs it, and tears it down again.

The only place that knows every part. Reading order: `run`, `_serve`, `_build`.
"""

import asyncio
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvloop

from loadbalancer.api.application import create_api
from loadbalancer.errors import BackendError
from loadbalancer.fleet.backends.base import Backend
from loadbalancer.fleet.backends.docker import DockerBackend
from loadbalancer.fleet.backends.process import ProcessBackend
from loadbalancer.fleet.fleet import Fleet
from loadbalancer.fleet.heartbeat import Prober
from loadbalancer.fleet.timing import Timing
from loadbalancer.proxy.accounting import Accounting
from loadbalancer.proxy.fast.lane import BACKLOG
from loadbalancer.routing.policies import make_policy
from loadbalancer.routing.ring import Ring, capacity
from loadbalancer.routing.snapshot import Snapshot
from loadbalancer.routing.upstream import Upstream, authority
from loadbalancer.serving import Front, Shutdown
from loadbalancer.settings import IN_IMAGE, Settings, parse_weights
from loadbalancer.telemetry.events import EventStream
from loadbalancer.telemetry.journal import Journal
from loadbalancer.telemetry.logs import configure as configure_logs
from loadbalancer.telemetry.metrics import Metrics
from loadbalancer.tls import Certificate, CertificateError

log = structlog.get_logger("loadbalancer")


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit status.

    Args:
        settings: The validated options.

    Returns:
        0 after an orderly end; 1 when it could not start, with the reason on standard error.
    """
    configure_logs(settings.log_format, settings.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings))


async def _serve(settings: Settings) -> int:
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        where = authority(settings.host, settings.port)
        print(f"loadbalancer serve: cannot listen on {where}: {error.strerror}", file=sys.stderr)
        return 1
    shutdown = Shutdown()
    with listener:
        try:
            certificate = _certificate(settings)
            async with _build(settings, shutdown, certificate) as parts:
                listener.listen(BACKLOG)  # who connects from now on may wait a moment, but is not refused
                log.info(
                    "serving",
                    url=f"{'https' if certificate else 'http'}://{authority(settings.host, settings.port)}",
                    backend=parts.backend.name,
                )
                await parts.front.serve(listener, shutdown)
        except (BackendError, CertificateError) as error:
            print(f"loadbalancer serve: {error}", file=sys.stderr)
            return 1
    log.info("stopped")
    return 0


@dataclass(frozen=True)
class _Parts:
    backend: Backend
    front: Front


@asynccontextmanager
async def _build(
    settings: Settings, shutdown: Shutdown, certificate: Certificate | None
) -> AsyncIterator[_Parts]:
    """Make every part and join them; at the end, stop the replicas and close what was opened."""
    rng = random.Random()
    metrics = Metrics()
    events = EventStream()
    backend = _make_backend(settings)
    async with Prober(settings.heartbeat_path, settings.heartbeat_timeout) as prober:
        fleet = Fleet(
            backend,
            prober,
            Journal(events, metrics),
            _snapshot_maker(settings, rng),
            replicas=settings.replicas,
            capacity=_room(settings),
            timing=Timing(
                interval=settings.heartbeat_interval,
                max_fail_count=settings.max_fail_count,
                start=settings.start_timeout,
                drain=settings.drain_timeout,
                stop=settings.stop_timeout,
                eject_after=settings.eject_after,
                eject=settings.eject_time,
                slow_start=settings.slow_start,
            ),
            weights=parse_weights(settings.weights),
            rng=rng,
        )
        metrics.watch_replicas(fleet.census)
        api = create_api(fleet, metrics, events, settings.admin_token)
        accounting = Accounting(metrics, access_log=settings.access_log)
        try:
            await fleet.open()
            yield _Parts(backend, Front(settings, fleet, accounting, api, events.close, certificate))
        finally:
            await _close(fleet, shutdown, keep=settings.on_exit == "keep")


async def _close(fleet: Fleet, shutdown: Shutdown, *, keep: bool) -> None:
    """Drain and stop the replicas, unless they shall be kept; without patience once there is a hurry."""

    async def when_hurried() -> None:
        await shutdown.hurried.wait()
        fleet.hurry()

    hurrying = asyncio.create_task(when_hurried())
    try:
        await fleet.close(keep=keep)
    finally:
        hurrying.cancel()


def _certificate(settings: Settings) -> Certificate | None:
    """The certificate, read again at each SIGHUP; None if there is to be no TLS."""
    if not settings.tls_cert:
        return None
    certificate = Certificate(Path(settings.tls_cert), Path(settings.tls_key))
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, certificate.reload)
    return certificate


def _listen(host: str, port: int) -> socket.socket:
    """Bind before anything is started, so that a taken port costs no replica its life."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise OSError(error.errno, error.strerror) from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _make_backend(settings: Settings) -> Backend:
    if settings.effective_backend() == "docker":
        return DockerBackend(
            image=settings.image,
            replica_port=settings.replica_port,
            fleet=settings.fleet,
            chosen_network=settings.network,
            in_container=os.environ.get(IN_IMAGE) == "1",
        )
    return ProcessBackend(settings.command)


def _room(settings: Settings) -> int:
    """How many replicas there is room for."""
    if settings.policy != "consistent-hash":
        return settings.max_replicas
    return min(settings.max_replicas, capacity(settings.ring))


def _snapshot_maker(settings: Settings, rng: random.Random) -> Callable[[Sequence[Upstream]], Snapshot]:
    # Each ring is made from the one before: that costs a fraction of building it anew.
    ring = Ring.build(settings.ring, ())

    def make(upstreams: Sequence[Upstream]) -> Snapshot:
        nonlocal ring
        if settings.policy == "consistent-hash":
            ring = ring.changed_to(upstream.number for upstream in upstreams)
        policy = make_policy(settings.policy, upstreams, ring=ring, load_factor=settings.load_factor, rng=rng)
        return Snapshot(tuple(upstreams), policy, rng)

    return make
