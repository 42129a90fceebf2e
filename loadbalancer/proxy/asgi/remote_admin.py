"""The admin application as a worker process sees it: an ASGI application that passes requests on to it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from loadbalancer.proxy.accounting import Accounting
from loadbalancer.proxy.asgi.lane import AsgiLane
from loadbalancer.proxy.router import Router
from loadbalancer.routing.policies import RoundRobin
from loadbalancer.routing.snapshot import Snapshot
from loadbalancer.routing.upstream import Upstream
from loadbalancer.settings import Settings
from loadbalancer.telemetry.metrics import Metrics


class _Fixed:
    """There is one upstream, which never changes (see `SnapshotSource`)."""

    expects_upstream = False

    def __init__(self, upstream: Upstream) -> None:
        self.snapshot = Snapshot((upstream,), RoundRobin((upstream,)))

    async def next_snapshot(self) -> None:
        raise AssertionError("no request waits for the admin application")


@asynccontextmanager
async def open_remote_admin(path: str, settings: Settings) -> AsyncIterator[AsgiLane]:
    """Pass requests on to the process that serves the admin application; they are not counted.

    Args:
        path: Of the Unix socket on which it listens.
        settings: Time-outs.
    """
    upstream = Upstream("the admin application", 1, path, 0)
    async with AsgiLane(
        Router.of(_Fixed(upstream), settings), settings, Accounting(Metrics(), access_log=False)
    ) as lane:
        yield lane
