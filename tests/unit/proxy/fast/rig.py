"""A fast lane without sockets: real connections of both sides on made-up transports.

A `Wire` is the transport under one of the lane's connections. It remembers what the lane has written, and
brings what the other end sends as a real one would: not while reading is paused, and not after its end.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from structlog.testing import capture_logs

from loadbalancer.proxy.accounting import Accounting
from loadbalancer.proxy.fast.client import ClientConnection
from loadbalancer.proxy.fast.lane import FastLane
from loadbalancer.proxy.fast.limits import Limits
from loadbalancer.proxy.fast.peer import Peer
from loadbalancer.proxy.fast.pool import Pool
from loadbalancer.proxy.fast.request_head import Request, read_head
from loadbalancer.proxy.fast.upstream import UpstreamConnection
from loadbalancer.proxy.forwarding import TrustedProxies
from loadbalancer.proxy.router import Router
from loadbalancer.publication import Publication
from loadbalancer.routing.upstream import Upstream
from loadbalancer.settings import Settings
from loadbalancer.telemetry.metrics import Metrics
from tests.unit.fleet.fakes import make_snapshot

CLIENT = "192.0.2.1"
LIMITS = Limits.of(Settings.model_validate({}))


def make_peer(*trusted: str) -> Peer:
    """The other end of a client's connection; trusted if its address is given."""
    return Peer(CLIENT, "http", lambda: b"192.0.2.9:5000", TrustedProxies(trusted))


def read(head: bytes, peer: Peer | None = None, limits: Limits = LIMITS) -> Request:
    """Read a whole head the general way."""
    return read_head(head, peer or make_peer(), limits, lambda: "made-up-id")


class Wire:
    """The transport of one connection, and the other end of it."""

    def __init__(self) -> None:
        self.protocol: asyncio.Protocol
        self.written = b""
        self.closed = False
        """Whether the lane has closed it."""
        self.half_closed = False
        """Whether the lane has said that it sends no more."""
        self.paused = False
        self.lost = False
        self.on_write: Callable[[bytes], None] | None = None

    def connect(self, protocol: asyncio.Protocol) -> None:
        """Put it under a connection."""
        self.protocol = protocol
        protocol.connection_made(self)  # type: ignore[arg-type]

    # -- the lane's side: asyncio.Transport ------------------------------------------------------------

    def write(self, data: bytes) -> None:
        assert not self.half_closed, "written after the end"
        if not self.closed and data:
            self.written += data
            if self.on_write is not None:
                self.on_write(data)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.lose)

    abort = close

    def write_eof(self) -> None:
        self.half_closed = True

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def get_extra_info(self, name: str) -> Any:
        return {"peername": (CLIENT, 1), "sockname": ("192.0.2.9", 5000)}.get(name)

    # -- the other end ---------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether what is sent arrives now."""
        return not (self.closed or self.lost or self.paused)

    def send(self, data: bytes) -> None:
        """Have the connection receive bytes."""
        assert self.open
        self.protocol.data_received(data)

    def end(self) -> None:
        """Send no more."""
        if not self.closed and not self.lost and not self.protocol.eof_received():
            self.close()

    def lose(self, error: Exception | None = None) -> None:
        """Let the connection end."""
        if not self.lost:
            self.lost = self.closed = True
            self.protocol.connection_lost(error)


class Rig:
    """One lane, its clients, and replicas whose connections are wires.

    Args:
        lane: The lane.
        upstreams: The replicas in rotation.
        source: Publishes the rotation.
    """

    def __init__(self, lane: FastLane, upstreams: Sequence[Upstream], source: Publication) -> None:
        self.lane = lane
        self.upstreams = upstreams
        self.source = source
        self.opened: list[Wire] = []
        """The wires to replicas, in the order in which they were connected."""
        self.on_open: Callable[[Wire], None] | None = None
        self.refuses = False
        """Whether replicas refuse new connections."""
        for upstream in upstreams:
            pool = lane.pool(upstream)
            pool.open = self._opener(pool)  # type: ignore[method-assign]
        lane.admin.open = self._refuse  # type: ignore[method-assign]

    @staticmethod
    async def _refuse() -> UpstreamConnection:
        raise ConnectionRefusedError("nobody listens")

    def _opener(self, pool: Pool) -> Callable[[], Any]:
        async def connect() -> UpstreamConnection:
            await asyncio.sleep(0)
            return await self._refuse() if self.refuses else self.connection(pool)

        return connect

    def connection(self, pool: Pool) -> UpstreamConnection:
        """A new connection to a replica."""
        wire, connection = Wire(), UpstreamConnection(pool)
        wire.connect(connection)
        self.opened.append(wire)
        if self.on_open is not None:
            self.on_open(wire)
        return connection

    def warm(self) -> Wire:
        """Put an idle connection into the pool of the first replica."""
        pool = self.lane.pool(self.upstreams[0])
        pool.give_back(self.connection(pool))
        return self.opened[-1]

    def client(self) -> Wire:
        """A new client."""
        wire = Wire()
        wire.connect(ClientConnection(self.lane))
        return wire

    async def settle(self) -> None:
        """Let the loop do what is due, and what is due after that."""
        for _ in range(12):
            await asyncio.sleep(0)


@asynccontextmanager
async def bare_rig(replicas: int = 1, **options: Any) -> AsyncIterator[Rig]:
    """A lane with as many replicas in rotation.

    Args:
        replicas: How many.
        options: Of the load balancer, when they are not the usual ones.
    """
    upstreams = [Upstream(f"S{number}", number, "127.0.0.1", number) for number in range(1, replicas + 1)]
    source = Publication(make_snapshot(upstreams), lambda: bool(replicas))
    settings = Settings.model_validate({"eject_after": 0, "queue_timeout": 0, **options})
    accounting = Accounting(Metrics(), access_log=False)
    async with FastLane(
        Router.of(source, settings), settings, accounting, "/nowhere", rng=random.Random(1)
    ) as lane:
        made = Rig(lane, upstreams, source)
        yield made
        await made.settle()


@asynccontextmanager
async def rig(replicas: int = 1, **options: Any) -> AsyncIterator[Rig]:
    """The same; at the end nothing may be in flight, and no defect logged."""
    with capture_logs() as records:
        async with bare_rig(replicas, **options) as made:
            yield made
        await asyncio.sleep(0)
    assert not [record for record in records if record["event"] == "defect"]
    assert [upstream.in_flight for upstream in made.upstreams] == [0] * replicas
    assert made.lane.accounting.metrics.in_flight == 0
