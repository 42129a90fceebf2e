"""A virtual clock, and a backend and heartbeats without processes, for pure tests of the fleet."""

import asyncio
import random
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from loadbalancer.errors import BackendError, BadRequestError, EngineAwayError
from loadbalancer.fleet.backends.base import Found, Instance, ReplicaSpec
from loadbalancer.fleet.fleet import Fleet
from loadbalancer.fleet.heartbeat import Heartbeat, Miss, Unsent
from loadbalancer.fleet.replica import Replica
from loadbalancer.fleet.timing import Timing
from loadbalancer.routing.policies import RoundRobin
from loadbalancer.routing.snapshot import Snapshot
from loadbalancer.routing.upstream import Upstream

T = TypeVar("T")


class DeadlockError(Exception):
    """Every task waits, and no event can happen."""


class _InstantSelector(selectors.SelectSelector):
    """Moves the clock to the next timer instead of waiting for it."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise DeadlockError
            self.now += timeout
        return ready


def make_loop() -> asyncio.AbstractEventLoop:
    """Make an event loop with a virtual clock. It takes no real time, and its order never changes."""
    selector = _InstantSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    return loop


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a virtual clock."""
    with asyncio.Runner(loop_factory=make_loop) as runner:
        return runner.run(main)


async def pass_time(seconds: float) -> None:
    """Let virtual time pass."""
    await asyncio.sleep(seconds)


def now() -> float:
    """The virtual time, in seconds."""
    return asyncio.get_running_loop().time()


class FakeBackend:
    """Runs replicas that exist only in this object. Each operation takes some virtual time."""

    name = "fake"

    def __init__(self, start_time: float = 0.2, leftovers: Sequence[Found] = ()) -> None:
        self.start_time = start_time
        self.leftovers = list(leftovers)
        self.running: dict[str, tuple[ReplicaSpec, Instance]] = {}
        self.hung: set[str] = set()
        self.slow: dict[str, float] = {}
        self.refuse: Callable[[ReplicaSpec], str | None] = lambda spec: None
        self.dies_at_once: Callable[[ReplicaSpec], bool] = lambda spec: False
        self.unreachable = False
        self.no_files = False
        self.started: list[tuple[float, str]] = []
        self.stops: list[tuple[float, str, float]] = []
        self.most_at_once = 0
        self._starting = 0
        self._next_port = 1
        self.closed = False
        self.lock_is_held: Callable[[], bool] = lambda: False

    async def open(self) -> None:
        self._need_engine()

    async def close(self) -> None:
        self.closed = True

    def check_name(self, hostname: str) -> None:
        if len(hostname) > 63:
            raise BadRequestError(f"'{hostname}' is too long")

    async def adopt(self) -> list[Found]:
        for found in self.leftovers:
            if found.instance is not None:
                self.running[found.instance.id] = (found.spec, found.instance)
        return self.leftovers

    async def start(self, spec: ReplicaSpec) -> Instance:
        self._need_engine()
        self.started.append((now(), spec.hostname))
        self._starting += 1
        self.most_at_once = max(self.most_at_once, self._starting)
        try:
            await pass_time(self.start_time)
        finally:
            self._starting -= 1
        if reason := self.refuse(spec):
            raise BackendError(reason)
        if any(other.hostname == spec.hostname for other, _ in self.running.values()):
            raise BackendError(f"name {spec.hostname} is taken")
        port, self._next_port = self._next_port, self._next_port + 1
        instance = Instance(f"{spec.hostname}#{port}", "fake", port)
        self.running[instance.id] = (spec, instance)
        if self.dies_at_once(spec):
            self.die(spec.hostname, "exited with code 1")
        return instance

    async def stop(self, instance: Instance, grace: float) -> None:
        self.stops.append((now(), instance.id, grace))
        patience = grace if instance.id in self.hung else 0.01
        await asyncio.wait({instance.lost}, timeout=min(patience, grace))
        self._need_engine()
        self._end(instance.id, "stopped")

    async def discard(self, instance: Instance) -> None:
        self._need_engine()
        self._end(instance.id, "discarded")

    async def remove_leftovers(self, spec: ReplicaSpec) -> None:
        assert not self.lock_is_held(), "the fleet awaits its backend under the lock"

    # -- faults, by hostname ------------------------------------------------------------------------

    def instance_of(self, hostname: str) -> Instance:
        return next(instance for spec, instance in self.running.values() if spec.hostname == hostname)

    def die(self, hostname: str, reason: str = "killed by SIGKILL") -> None:
        self._end(self.instance_of(hostname).id, reason)

    def hang(self, hostname: str) -> None:
        self.hung.add(self.instance_of(hostname).id)

    def _end(self, identifier: str, reason: str) -> None:
        _, instance = self.running.pop(identifier, (None, None))
        if instance is not None and not instance.lost.done():
            instance.lost.set_result(reason)
            instance.last_words.set_result("")

    def _need_engine(self) -> None:
        assert not self.lock_is_held(), "the fleet awaits its backend under the lock"
        if self.unreachable:
            raise EngineAwayError("the engine does not answer")

    # -- heartbeats ---------------------------------------------------------------------------------

    async def probe(self, host: str, port: int) -> Heartbeat:
        if self.no_files:
            return Unsent("no heartbeat could be sent: Too many open files")
        instance = next((i for _, i in self.running.values() if i.port == port), None)
        if instance is None:
            return Miss("heartbeat refused")
        if instance.id in self.hung:
            await pass_time(1.0)
            return Miss("no heartbeat within 1 s", timed_out=True)
        await pass_time(self.slow.get(instance.id, 0.001))
        return None


class Journal:
    """Records the events of the fleet."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, str | None]] = []

    def replica_event(self, event: str, replica: Replica, reason: str | None = None) -> None:
        self.lines.append((event, replica.hostname, reason))

    def of(self, event: str) -> list[str]:
        return [hostname for what, hostname, _ in self.lines if what == event]


def make_snapshot(upstreams: Sequence[Upstream]) -> Snapshot:
    return Snapshot(tuple(upstreams), RoundRobin(upstreams))


def make_fleet(
    backend: FakeBackend, replicas: int = 3, capacity: int = 100, seed: int = 1, **timing: Any
) -> tuple[Fleet, Journal]:
    journal = Journal()
    fleet = Fleet(
        backend,
        backend,
        journal,
        make_snapshot,
        replicas=replicas,
        capacity=capacity,
        timing=Timing(**timing),
        rng=random.Random(seed),
    )
    return fleet, journal


async def until(condition: Callable[[], bool], within: float) -> float:
    """Let virtual time pass until a condition holds, and return the seconds that passed."""
    begun = now()
    while not condition():
        assert now() - begun <= within, f"not so within {within} s"
        await pass_time(0.01)
    return now() - begun


@asynccontextmanager
async def running(backend: FakeBackend, **options: Any) -> AsyncIterator[tuple[Fleet, Journal]]:
    fleet, journal = make_fleet(backend, **options)
    await fleet.open()
    expected = len(await fleet.members())
    await until(lambda: len(fleet.snapshot.upstreams) == expected, within=5)
    try:
        yield fleet, journal
    finally:
        await fleet.close()
        assert not backend.running, "close leaves nothing behind"
        assert backend.closed


def scenario(body: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run an async test on the virtual clock."""

    def test() -> None:
        run(body())

    test.__name__ = body.__name__
    return test


def names(fleet: Fleet) -> list[str]:
    return [upstream.hostname for upstream in fleet.snapshot.upstreams]
