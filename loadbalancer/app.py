"""Builds the whole load balancer from its settings, runs it, and closes it again.

No other module knows every part. Reading order: `run`, `_serve`, `_run`, `_build`.
"""

import asyncio
import os
import random
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass

import structlog
import uvloop

from loadbalancer.admin.application import create_admin
from loadbalancer.errors import BackendError
from loadbalancer.fleet.backends.base import Backend
from loadbalancer.fleet.backends.docker import DockerBackend
from loadbalancer.fleet.backends.process import ProcessBackend
from loadbalancer.fleet.fleet import Fleet
from loadbalancer.fleet.heartbeat import Prober
from loadbalancer.fleet.journal import Journal
from loadbalancer.fleet.timing import Timing
from loadbalancer.listening import BACKLOG, bind, resolve
from loadbalancer.proxy.accounting import Accounting
from loadbalancer.routing.ring import capacity
from loadbalancer.routing.snapshot import snapshot_maker
from loadbalancer.routing.upstream import authority
from loadbalancer.serving import Front
from loadbalancer.settings import IN_IMAGE, Settings, parse_weights
from loadbalancer.shutdown import Shutdown
from loadbalancer.telemetry.events import EventStream
from loadbalancer.telemetry.logs import configure as configure_logs
from loadbalancer.telemetry.metrics import Metrics
from loadbalancer.tls import Certificate, CertificateError
from loadbalancer.workers.succession import claim, name_for

log = structlog.get_logger("loadbalancer")


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit status.

    Args:
        settings: The validated options.

    Returns:
        0 after an orderly end. 1 if it could not start, could not stop a replica, or failed in a way that it
        does not foresee; the reason is on standard error.
    """
    configure_logs(settings.log_format, settings.log_level)
    _allow_many_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings))


def _allow_many_files() -> None:
    """Raise the limit of open files as far as the system allows: each connection needs one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve(settings: Settings) -> int:
    with closing(Shutdown()) as shutdown:
        try:
            await _run(settings, shutdown)
        except (BackendError, CertificateError, _CannotListenError) as error:
            if error.__context__ is not None and not error.__suppress_context__:
                _log_failure(error.__context__)  # Closing failed as well, because of another error.
            return _fail(str(error))
        except (Exception, asyncio.CancelledError) as error:
            _log_failure(error)
            return _fail("the load balancer failed in a way that it did not foresee: see its log")
    log.info("stopped")
    return 0


async def _run(settings: Settings, shutdown: Shutdown) -> None:
    """Serve until told to stop, and close everything.

    Raises:
        _CannotListenError: The port cannot be had.
        CertificateError: The certificate cannot be used.
        BackendError: No replica can be started, or some could not be stopped.
    """
    with ExitStack() as stack:
        try:
            address = await shutdown.unless_out_of_time(resolve(settings.host, settings.port), 0)
            if address is None:
                return
            listeners = stack.enter_context(bind(address, settings.workers))
            held = stack.enter_context(claim(name_for(address.sockaddr))) if settings.workers > 1 else None
        except OSError as error:
            where = authority(settings.host, settings.port)
            raise _CannotListenError(f"cannot listen on {where}: {error.strerror}") from error
        certificate = Certificate.of(settings)
        if certificate is not None:
            shutdown.on_hangup = certificate.reload
        async with _build(settings, shutdown, certificate) as parts:
            if not shutdown.asked.is_set():
                for listener in listeners:
                    listener.listen(BACKLOG)
                _log_serving(settings, parts.backend)
                await parts.front.serve(listeners, held, shutdown)


class _CannotListenError(Exception):
    """The load balancer cannot listen on its port."""


def _log_serving(settings: Settings, backend: Backend) -> None:
    scheme = "https" if settings.tls_cert else "http"
    url = f"{scheme}://{authority(settings.host, settings.port)}"
    log.info("serving", url=url, backend=backend.name)


def _log_failure(error: BaseException) -> None:
    log.error("load balancer failed", reason=str(error) or type(error).__name__, exc_info=error)


def _fail(reason: str) -> int:
    print(f"loadbalancer serve: {reason}", file=sys.stderr)
    return 1


@dataclass(frozen=True)
class _Parts:
    backend: Backend
    front: Front


@asynccontextmanager
async def _build(
    settings: Settings, shutdown: Shutdown, certificate: Certificate | None
) -> AsyncIterator[_Parts]:
    """Make all parts and connect them. At the end, stop the replicas and close the parts."""
    rng = random.Random()
    metrics = Metrics()
    events = EventStream()
    backend = _make_backend(settings)
    async with Prober(settings.heartbeat_path, settings.heartbeat_timeout) as prober:
        fleet = Fleet(
            backend,
            prober,
            Journal(events, metrics),
            snapshot_maker(settings.policy, settings.ring, settings.load_factor, rng),
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
        admin = create_admin(fleet, metrics, events, settings.admin_token)
        accounting = Accounting(metrics, access_log=settings.access_log)
        shutdown.on_hurry = fleet.hurry
        try:
            # A cancelled start may leave something behind, so it gets time to end by itself first.
            await shutdown.unless_out_of_time(fleet.open(), settings.stop_timeout)
            yield _Parts(
                backend, Front(settings, fleet.publication, accounting, admin, events.close, certificate)
            )
        finally:
            await fleet.close(keep=settings.on_exit == "keep")


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
    """The largest number of replicas that the ring and the options allow."""
    if settings.policy != "consistent-hash":
        return settings.max_replicas
    return min(settings.max_replicas, capacity(settings.ring))
