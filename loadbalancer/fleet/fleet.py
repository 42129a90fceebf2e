"""The fleet: how many replicas there should be, and how they come and go.

Every change of membership happens in a few lines of plain code under the write lock, and every wait —
for a container, a heartbeat, a drain — outside of it. So `/add` and `/rm` may come at the same time
as each other, as heartbeats and as requests. Each replica has a keeper that does the waiting.
"""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import structlog

from loadbalancer.errors import BackendError, BadRequestError, ClosingError
from loadbalancer.fleet.backends.base import Backend, Found, ReplicaSpec
from loadbalancer.fleet.keeper import Keeper
from loadbalancer.fleet.names import NameMaker, lowest_free
from loadbalancer.fleet.replica import Replica, State
from loadbalancer.fleet.roster import Observer, Roster
from loadbalancer.fleet.state import FleetState
from loadbalancer.fleet.timing import Timing
from loadbalancer.fleet.watch import Probe
from loadbalancer.routing.snapshot import Snapshot
from loadbalancer.routing.upstream import Upstream

T = TypeVar("T")

MAX_CONCURRENT_STARTS = 16
"""Instances started at once: enough to make `/add 10` as quick as `/add 1`, few enough for any engine."""

log = structlog.get_logger(__name__)


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
        self._roster = Roster(observer, make_snapshot)
        self.publication = self._roster.publication
        """What the data plane reads."""
        self._initial = replicas
        self._capacity = capacity
        self._timing = timing
        self._weights = weights or {}
        self._rng = rng or random.Random()
        self._names = NameMaker(self._rng, lambda: time.time_ns() // 1_000_000)
        self._starts = asyncio.Semaphore(MAX_CONCURRENT_STARTS)
        self._hurry: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._keepers: dict[Replica, Keeper] = {}

    # -- the outside: what the API and the data path see ------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """What requests go by; read anew for each."""
        return self.publication.snapshot

    @property
    def serving(self) -> bool:
        """Whether at least one replica is in rotation."""
        return bool(self.snapshot.upstreams)

    def census(self) -> dict[str, int]:
        """How many replicas there are in each state."""
        return self._roster.census()

    async def members(self) -> list[str]:
        """The hostnames of the N, in the order of their ring numbers."""
        return await self._roster.members()

    async def describe(self) -> FleetState:
        """The state of every replica, also of those coming and going."""
        return await self._roster.describe()

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
        async with self._roster.lock.write():
            for leftover in found:
                self._take_over(leftover)
            if not found:
                for number in range(1, self._initial + 1):
                    self._enrol(Replica(ReplicaSpec(f"Server-{number}", number), admitted=True), "starting")
            for keeper in self._keepers.values():
                self._begin(keeper)

    async def close(self, *, keep: bool = False) -> None:
        """Drain and stop every replica, then let go of the backend. Returns when all is gone.

        Args:
            keep: Let the replicas run on, for another load balancer to adopt.
        """
        async with self._roster.lock.write():
            self._closing = True
            leaving = list(self._keepers.values())
            for keeper in leaving:
                self._dismiss(keeper, keep=keep and keeper.replica.admitted)
            self._roster.publish()
        outcomes = await asyncio.gather(
            *(keeper.finished() for keeper in leaving), *self._changes, return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, ClosingError):
                log.error("replica left behind", reason=str(outcome))
        await asyncio.gather(*(keeper.give_up() for keeper in leaving))
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
        async with self._roster.lock.write():
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
        async with self._roster.lock.write():
            if not failures and not self._closing:
                for keeper in newcomers:
                    keeper.replica.admitted = True
                    self._roster.move(keeper.replica, State.UP)
                    self._begin(keeper)
                self._roster.publish()
        if failures or self._closing:
            await self._roll_back(newcomers, failures)
        return await self.members()

    async def _roll_back(self, newcomers: Sequence[Keeper], failures: Sequence[Exception]) -> None:
        """Make a failed `/add` unhappen, and raise what made it fail."""
        async with self._roster.lock.write():
            for keeper in newcomers:
                self._dismiss(keeper)
                self._begin(keeper)
        await asyncio.gather(*(keeper.finished() for keeper in newcomers), return_exceptions=True)
        # The first failure told the others to leave: theirs are consequences, not causes.
        causes = [failure for failure in failures if not isinstance(failure, ClosingError)]
        raise next(iter([*causes, *failures]), ClosingError("the load balancer is shutting down"))

    async def _remove(self, n: int, hostnames: Sequence[str]) -> list[str]:
        async with self._roster.lock.write():
            leavers = self._choose(n, hostnames)
            for keeper in leavers:
                self._dismiss(keeper)
            self._roster.publish()
        outcomes = await asyncio.gather(*(keeper.finished() for keeper in leavers), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return await self.members()

    # -- plain code, under the write lock ---------------------------------------------------------

    def _reserve(self, n: int, hostnames: Sequence[str]) -> list[Keeper]:
        """Give n newcomers their names and numbers."""
        self._refuse_when_closing()
        replicas = self._roster.replicas
        taken = {name.lower() for name in replicas}
        for name in hostnames:
            if name.lower() in taken:
                raise BadRequestError(f"hostname '{name}' is already in use")
            self._backend.check_name(name)
        if n > self._capacity - len(replicas):
            raise BadRequestError(
                f"no slots left for {n} more replicas: there are {len(replicas)} of at most {self._capacity}"
            )
        names = list(hostnames)
        while len(names) < n:
            names.append(self._names.make(taken.union(name.lower() for name in names)))
        newcomers = []
        for name in names:
            number = lowest_free({replica.number for replica in replicas.values()})
            newcomers.append(self._enrol(Replica(ReplicaSpec(name, number)), "starting"))
        return newcomers

    def _choose(self, n: int, hostnames: Sequence[str]) -> list[Keeper]:
        """The replicas to remove: those named, and others at random."""
        self._refuse_when_closing()
        members = {name: replica for name, replica in self._roster.replicas.items() if replica.counts}
        for name in hostnames:
            if name not in members:
                raise BadRequestError(f"hostname '{name}' is not in the fleet")
        if n > len(members):
            raise BadRequestError(f"cannot remove {n} replicas: there are only {len(members)}")
        others = [name for name in members if name not in hostnames]
        rest = self._rng.sample(others, n - len(hostnames))
        return [self._keepers[members[name]] for name in [*hostnames, *rest]]

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise ClosingError("the load balancer is shutting down")

    def _enrol(self, replica: Replica, event: str) -> Keeper:
        replica.weight = self._weights.get(replica.hostname, 1)
        self._roster.enter(replica, event)
        self._keepers[replica] = Keeper(
            replica,
            self._backend,
            self._probe,
            self._roster,
            self._timing,
            self._starts,
            self._hurry,
            self._rng,
        )
        return self._keepers[replica]

    def _begin(self, keeper: Keeper) -> None:
        keeper.begin(when_gone=lambda: self._keepers.pop(keeper.replica))

    def _take_over(self, leftover: Found) -> None:
        replica = Replica(leftover.spec, admitted=True)
        replica.instance = leftover.instance
        if leftover.instance is None:
            replica.reason = "had ended while no load balancer was watching"
        self._enrol(replica, "adopted")

    def _dismiss(self, keeper: Keeper, *, keep: bool = False) -> None:
        """Take a replica off the ring and tell its keeper to let it drain, or to let it be."""
        if keeper.replica.state is not State.DRAINING:
            self._roster.move(keeper.replica, State.DRAINING)
        keeper.leave(keep=keep)
