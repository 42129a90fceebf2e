"""The load balancer's own pages as an ASGI application, for a process that does not serve them itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from loadbalancer.proxy.accounting import Accounting
from loadbalancer.proxy.asgi import AsgiLane
from loadbalancer.routing.policies import RoundRobin
from loadbalancer.routing.snapshot import Snapshot
from loadbalancer.routing.upstream import Upstream
from loadbalancer.settings import Settings
from loadbalancer.telemetry.metrics import Metrics


class _Fixed:
    """There is one upstream, which never changes (see `SnapshotSource`)."""

    hopeful = False

    def __init__(self, upstream: Upstream) -> None:
        self.snapshot = Snapshot((upstream,), RoundRobin((upstream,)))

    async def next_snapshot(self) -> None:
        raise AssertionError("not hopeful: nobody waits")


@asynccontextmanager
async def open_pages(path: str, settings: Settings) -> AsyncIterator[AsgiLane]:
    """Pass requests on to whoever serves the pages; not counted, for they are no replica's.

    Args:
        path: Of the Unix socket where they are served.
        settings: Time-outs.
    """
    upstream = Upstream("the load balancer's own page", 1, path, 0)
    async with AsgiLane(_Fixed(upstream), settings, Accounting(Metrics(), access_log=False)) as lane:
        yield lane
