"""The fleet: how many replicas there should be, who they are, and the snapshot that requests go by.

Every change of membership happens in a few lines of plain code under the write lock, and every wait —
for a container, a heartbeat, a drain — outside of it. So `/add` and `/rm` may come at the same time
as each other, as heartbeats and as requests. Each replica has a keeper that does the waiting.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

import structlog

from loadbalancer.errors import BackendError, BadRequestError, ClosingError
from loadbalancer.fleet.backends.base import Backend, Found, Instance, ReplicaSpec
from loadbalancer.fleet.keeper import Keeper, Probe, Timing
from loadbalancer.fleet.lock import FleetLock
from loadbalancer.fleet.names import NameMaker, lowest_free
from loadbalancer.fleet.replica import Replica, State
from loadbalancer.fleet.state import FleetState, ReplicaState
from loadbalancer.routing.snapshot import Snapshot
from loadbalancer.routing.upstream import Upstream

T = TypeVar("T")

MAX_CONCURRENT_STARTS = 16
"""Instances started at once: enough to make `/add 10` as quick as `/add 1`, few enough for any engine."""

log = structlog.get_logger(__name__)


class Observer(Protocol):
    """Whoever keeps the journal of the replicas' lives."""

    def replica_event(self, event: str, replica: Replica, reason: str | None = None) -> None:
        """Something has happened to a replica: `starting`, `up`, `missed`, `down`, `draining`, `gone`."""


class Fleet:
    """N replicas, kept alive.

    Args:
        backend: Where replicas run.
        probe: How to ask for heartbeats.
        observer: Told of every event of a replica's life.
        make_snapshot: Builds the snapshot (ring and policy) over the upstreams in rotation.
        replicas: How many to keep, unless an earlier run has left some to adopt.
        capacity: How many there is room for, on the ring or by the operator's limit.
        timing: How long keepers wait for what.
        weights: Weight of each hostname under the weighted policy; others weigh 1.
        rng: Source of names, of choices and of jitter.
    """

    def __init__(
        self,
        backend: Backend,
        probe: Probe,
        observer: Observer,
        make_snapshot: Callable[[Sequence[Upstream]], Snapshot],
        *,
        replicas: int,
        capacity: int,
        timing: Timing,
        weights: dict[str, int] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._backend = backend
        self._probe = probe
        self._observer = observer
        self._make_snapshot = make_snapshot
        self._initial = replicas
        self._capacity = capacity
        self._timing = timing
        self._weights = weights or {}
        self._rng = rng or random.Random()
        self._names = NameMaker(self._rng, lambda: time.time_ns() // 1_000_000)
        self._lock = FleetLock()
        self._starts = asyncio.Semaphore(MAX_CONCURRENT_STARTS)
        self._hurry: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes: set[asyncio.Task[Any]] = set()
        self._closing = False
        # What the lock guards: who is in the fleet (and the counts within), and what requests go by.
        self._keepers: dict[str, Keeper] = {}
        self._snapshot = make_snapshot(())

    # -- the outside: what the API and the data path see ------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """What requests go by; read anew for each."""
        return self._snapshot

    @property
    def serving(self) -> bool:
        """Whether at least one replica is in rotation."""
        return bool(self._snapshot.upstreams)

    def census(self) -> dict[str, int]:
        """How many replicas there are in each state."""
        count = Counter(keeper.replica.state.value for keeper in self._keepers.values())
        return {state.value: count[state.value] for state in State if state is not State.GONE}

    async def members(self) -> list[str]:
        """The hostnames of the N, in the order of their ring numbers."""
        async with self._lock.read():
            return [keeper.replica.hostname for keeper in self._in_order() if keeper.replica.counts]

    async def describe(self) -> FleetState:
        """The state of every replica, also of those coming and going."""
        async with self._lock.read():
            keepers = self._in_order()
            return FleetState(
                desired=sum(keeper.replica.counts for keeper in keepers),
                replicas=tuple(_describe(keeper.replica) for keeper in keepers),
            )

    async def add(self, n: int, hostnames: Sequence[str] = ()) -> list[str]:
        """Grow by n replicas, and return the members once the newcomers are in rotation.

        They enter the rotation together, once all are up; when one cannot be started, none does.
        The change goes on even if the caller is cancelled.

        Args:
            n: How many, at least 1.
            hostnames: Names for the first of them; the rest are made up.

        Raises:
            BadRequestError: A name is in use, or there is no room for so many; nothing was changed.
            BackendError: One could not be started; the others are gone again.
            ClosingError: The load balancer is shutting down.
        """
        return await self._to_the_end(self._add(n, hostnames))

    async def remove(self, n: int, hostnames: Sequence[str] = ()) -> list[str]:
        """Shrink by n replicas, and return the members once the leavers have drained and are gone.

        The change goes on even if the caller is cancelled.

        Args:
            n: How many, at least 1.
            hostnames: Who must be among them; the rest are picked at random.

        Raises:
            BadRequestError: A name is unknown, or there are not so many; nothing was changed.
            BackendError: One has left the fleet but could not be stopped.
            ClosingError: The load balancer is shutting down.
        """
        return await self._to_the_end(self._remove(n, hostnames))

    # -- the beginning and the end ----------------------------------------------------------------

    async def open(self) -> None:
        """Adopt what an earlier run has left, or begin anew; returns while replicas still start.

        The engine is the database: when there are replicas of this fleet, they are the fleet, and
        their number is N.

        Raises:
            BackendError: No replica could ever be started here.
        """
        await self._backend.open()
        found = await self._backend.adopt()
        if len(found) > self._capacity:
            raise BackendError(
                f"there are {len(found)} replicas of this fleet, but room for {self._capacity} only: "
                "remove some, or start with the --ring and --max-replicas that they were started with"
            )
        async with self._lock.write():
            for leftover in found:
                keeper = self._enrol(leftover.spec, admitted=True)
                self._take_over(keeper, leftover)
            if not found:
                for number in range(1, self._initial + 1):
                    keeper = self._enrol(ReplicaSpec(f"Server-{number}", number), admitted=True)
                    self._observer.replica_event("starting", keeper.replica)
            for keeper in self._keepers.values():
                keeper.begin()

    async def close(self) -> None:
        """Drain and stop every replica, then let go of the backend. Returns when all is gone."""
        async with self._lock.write():
            self._closing = True
            leaving = list(self._keepers.values())
            for keeper in leaving:
                self._dismiss(keeper)
            self._publish()
        outcomes = await asyncio.gather(
            *(keeper.finished() for keeper in leaving), *self._changes, return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, ClosingError):
                log.error("replica left behind", reason=str(outcome))
        await self._backend.close()

    def hurry(self) -> None:
        """Let `close` wait for nothing any more: no drain, no grace."""
        if not self._hurry.done():
            self._hurry.set_result(None)

    # -- changes ----------------------------------------------------------------------------------

    async def _to_the_end(self, change: Coroutine[Any, Any, T]) -> T:
        """Run a change in a task of the fleet's own, so that a caller who goes away leaves it whole."""
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._change_ended)
        return await asyncio.shield(task)

    def _change_ended(self, task: "asyncio.Task[Any]") -> None:
        self._changes.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("change refused", reason=str(error))

    async def _add(self, n: int, hostnames: Sequence[str]) -> list[str]:
        async with self._lock.write():
            newcomers = self._reserve(n, hostnames)

        async def launch(keeper: Keeper) -> None:
            try:
                await keeper.launch()
            except Exception:
                for other in newcomers:
                    other.leave()
                raise

        outcomes = await asyncio.gather(*map(launch, newcomers), return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        async with self._lock.write():
            if not failures and not self._closing:
                for keeper in newcomers:
                    keeper.replica.admitted = True
                    self._move(keeper.replica, State.UP)
                    keeper.begin()
                self._publish()
        if failures or self._closing:
            await self._roll_back(newcomers, failures)
        return await self.members()

    async def _roll_back(self, newcomers: Sequence[Keeper], failures: Sequence[Exception]) -> None:
        """Make a failed `/add` unhappen, and raise what made it fail."""
        await asyncio.gather(*(keeper.abandon() for keeper in newcomers))
        # The first failure told the others to leave: theirs are consequences, not causes.
        causes = [failure for failure in failures if not isinstance(failure, ClosingError)]
        raise next(iter([*causes, *failures]), ClosingError("the load balancer is shutting down"))

    async def _remove(self, n: int, hostnames: Sequence[str]) -> list[str]:
        async with self._lock.write():
            leavers = self._choose(n, hostnames)
            for keeper in leavers:
                self._dismiss(keeper)
            self._publish()
        outcomes = await asyncio.gather(*(keeper.finished() for keeper in leavers), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return await self.members()

    # -- plain code, under the write lock ---------------------------------------------------------

    def _reserve(self, n: int, hostnames: Sequence[str]) -> list[Keeper]:
        """Give n newcomers their names and numbers."""
        self._refuse_when_closing()
        taken = {name.lower() for name in self._keepers}
        for name in hostnames:
            if name.lower() in taken:
                raise BadRequestError(f"hostname '{name}' is already in use")
            self._backend.check_name(name)
        room = self._capacity - len(self._keepers)
        if n > room:
            raise BadRequestError(
                f"no slots left for {n} more replicas: "
                f"there are {len(self._keepers)} of at most {self._capacity}"
            )
        names = list(hostnames)
        while len(names) < n:
            names.append(self._names.make(taken.union(name.lower() for name in names)))
        newcomers = []
        for name in names:
            number = lowest_free({keeper.replica.number for keeper in self._keepers.values()})
            newcomers.append(self._enrol(ReplicaSpec(name, number), admitted=False))
            self._observer.replica_event("starting", newcomers[-1].replica)
        return newcomers

    def _choose(self, n: int, hostnames: Sequence[str]) -> list[Keeper]:
        """The replicas to remove: those named, and others at random."""
        self._refuse_when_closing()
        members = {name: keeper for name, keeper in self._keepers.items() if keeper.replica.counts}
        for name in hostnames:
            if name not in members:
                raise BadRequestError(f"hostname '{name}' is not in the fleet")
        if n > len(members):
            raise BadRequestError(f"cannot remove {n} replicas: there are only {len(members)}")
        others = [name for name in members if name not in hostnames]
        rest = self._rng.sample(others, n - len(hostnames))
        return [members[name] for name in [*hostnames, *rest]]

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise ClosingError("the load balancer is shutting down")

    def _enrol(self, spec: ReplicaSpec, *, admitted: bool) -> Keeper:
        replica = Replica(spec, weight=self._weights.get(spec.hostname, 1), admitted=admitted)
        keeper = Keeper(
            replica, self._backend, self._probe, self, self._timing, self._starts, self._hurry, self._rng
        )
        self._keepers[spec.hostname] = keeper
        return keeper

    def _take_over(self, keeper: Keeper, leftover: Found) -> None:
        keeper.replica.instance = leftover.instance
        self._observer.replica_event("adopted", keeper.replica)
        if leftover.instance is None:
            keeper.replica.reason = "had ended while no load balancer was watching"

    def _dismiss(self, keeper: Keeper) -> None:
        """Take a replica off the ring and tell its keeper to let it drain."""
        if keeper.replica.state is not State.DRAINING:
            self._move(keeper.replica, State.DRAINING)
        keeper.leave()

    def _move(self, replica: Replica, state: State, reason: str | None = None) -> None:
        replica.move(state, reason)
        self._observer.replica_event(state.value, replica, reason)

    def _publish(self) -> None:
        """Let requests go by what is in rotation now: one assignment."""
        replicas = [keeper.replica for keeper in self._in_order()]
        self._snapshot = self._make_snapshot(
            [r.upstream for r in replicas if r.state is State.UP and r.upstream is not None]
        )

    def _in_order(self) -> list[Keeper]:
        return sorted(self._keepers.values(), key=lambda keeper: keeper.replica.number)

    # -- what keepers report (see `keeper.Registry`) ----------------------------------------------

    async def started(self, replica: Replica, instance: Instance) -> None:
        """An instance fills the replica's place."""
        async with self._lock.write():
            replica.instance = instance

    async def in_rotation(self, replica: Replica) -> None:
        """The replica is up: put it on the ring, unless it has been told to leave meanwhile."""
        async with self._lock.write():
            if replica.state is State.STARTING:
                self._move(replica, State.UP)
                self._publish()

    async def out_of_rotation(self, replica: Replica, reason: str) -> None:
        """The replica is down, or could not start: take it off the ring and forget its instance."""
        async with self._lock.write():
            replica.instance = None
            if replica.state in (State.UP, State.STARTING):
                self._move(replica, State.DOWN, reason)
                self._publish()

    async def restarting(self, replica: Replica) -> None:
        """A replacement is about to be started."""
        async with self._lock.write():
            if replica.state is State.DOWN:
                replica.restarts += 1
                self._move(replica, State.STARTING)

    async def beat(self, replica: Replica, miss: str | None) -> int:
        """Count a heartbeat, good (None) or missed (the reason); return the misses in a row."""
        async with self._lock.write():
            if miss is None:
                replica.missed = 0
            else:
                replica.missed += 1
                self._observer.replica_event("missed", replica, miss)
            return replica.missed

    async def gone(self, replica: Replica) -> None:
        """The replica has ended: free its name and number."""
        async with self._lock.write():
            self._move(replica, State.GONE)
            self._keepers.pop(replica.hostname, None)


def _describe(replica: Replica) -> ReplicaState:
    instance, upstream = replica.instance, replica.upstream
    return ReplicaState(
        hostname=replica.hostname,
        number=replica.number,
        state=replica.state.value,
        address=instance.address if instance else None,
        id=instance.id if instance else None,
        in_flight=upstream.in_flight if upstream else 0,
        missed=replica.missed,
        restarts=replica.restarts,
        since=replica.since.strftime("%Y-%m-%dT%H:%M:%SZ"),
        reason=replica.reason,
    )
