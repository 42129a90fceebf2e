"""The fleet: the number of replicas that should run, and how replicas join and leave.

Each change of membership is a short piece of plain code under the write lock. All waiting (for a container, a
heartbeat, a drain) happens outside the lock. So `/add` and `/rm` may run at the same time as each other, as
heartbeats and as requests. Each replica has a supervisor that does the waiting.
"""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import structlog

from loadbalancer.errors import BackendError, BadRequestError, ClosingError, LoadBalancerError
from loadbalancer.fleet.backends.base import Backend, Found, ReplicaSpec
from loadbalancer.fleet.health_recorder import Probe
from loadbalancer.fleet.names import NameMaker, lowest_free
from loadbalancer.fleet.replica import Replica, State
from loadbalancer.fleet.roster import Observer, Roster
from loadbalancer.fleet.state import FleetState
from loadbalancer.fleet.supervisor import ReplicaSupervisor
from loadbalancer.fleet.timing import Timing
from loadbalancer.routing.snapshot import Snapshot
from loadbalancer.routing.upstream import Upstream
from loadbalancer.tasks import Jobs, Service, result_of

T = TypeVar("T")

MAX_CONCURRENT_STARTS = 16
"""Instances that start at the same time. `/add 10` takes as long as `/add 1`, and no engine is overloaded."""

log = structlog.get_logger(__name__)


class Fleet:
    """A fleet of N replicas, which it keeps alive.

    Args:
        backend: Runs the replicas.
        probe: Sends heartbeats.
        observer: Hears of every event of every replica.
        make_snapshot: Builds the snapshot (ring and policy) from the upstreams in rotation.
        replicas: The initial N. Replicas that an earlier run has left take precedence.
        capacity: The largest number of replicas that the ring, or the operator, allows.
        timing: Intervals and limits.
        weights: Weight of each hostname under the weighted policy; the default is 1.
        rng: Source of names, of random choices and of jitter.
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
        """Publishes the snapshots that the data plane reads."""
        self._initial = replicas
        self._capacity = capacity
        self._timing = timing
        self._weights = weights or {}
        self._rng = rng or random.Random()
        self._names = NameMaker(self._rng, lambda: time.time_ns() // 1_000_000)
        self._starts = asyncio.Semaphore(MAX_CONCURRENT_STARTS)
        self._hurry: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changes = Jobs(LoadBalancerError)
        self._closing = False
        self._supervisors: dict[Replica, ReplicaSupervisor] = {}

    # -- for the admin endpoints and the data path ------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """The current snapshot. Each request reads it again."""
        return self.publication.snapshot

    @property
    def serving(self) -> bool:
        """Whether at least one replica is in rotation."""
        return bool(self.snapshot.upstreams)

    def census(self) -> dict[str, int]:
        """The number of replicas in each state."""
        return self._roster.census()

    async def members(self) -> list[str]:
        """The hostnames of the N replicas, in the order of their ring numbers."""
        return await self._roster.members()

    async def describe(self) -> FleetState:
        """The state of every replica, including those that are joining or leaving."""
        return await self._roster.describe()

    async def add(self, n: int, hostnames: Sequence[str] = ()) -> list[str]:
        """Add n replicas, and return the members once the new replicas are in rotation.

        They enter the rotation together, when all are up. If one cannot be started, none is added.
        The change is completed even if the caller is cancelled.

        Args:
            n: The number of new replicas, at least 1.
            hostnames: Names of the first of them. The others get generated names.

        Raises:
            BadRequestError: A name is in use, or there is no room for n more; nothing was changed.
            BackendError: One replica could not be started; the others have been removed again.
            ClosingError: The load balancer is shutting down.
        """
        return await self._complete(lambda: self._add(n, hostnames), f"add {n}")

    async def remove(self, n: int, hostnames: Sequence[str] = ()) -> list[str]:
        """Remove n replicas, and return the members once the removed replicas have drained and stopped.

        The change is completed even if the caller is cancelled.

        Args:
            n: The number of replicas to remove, at least 1.
            hostnames: Names of replicas to remove. The others are chosen at random.

        Raises:
            BadRequestError: A name is unknown, or there are fewer than n replicas; nothing was changed.
            BackendError: A replica has left the fleet but could not be stopped.
            ClosingError: The load balancer is shutting down.
        """
        return await self._complete(lambda: self._remove(n, hostnames), f"remove {n}")

    # -- start and shutdown -------------------------------------------------------------------------

    async def open(self) -> None:
        """Adopt the replicas of an earlier run, or start N new ones. Does not wait until they are up.

        The replicas that the engine has are the source of truth: if there are any of this fleet, they are
        the members, and their number is N.

        Raises:
            BackendError: The backend cannot start any replica.
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
                self._adopt(leftover)
            if not found:
                for number in range(1, self._initial + 1):
                    self._enter(Replica(ReplicaSpec(f"Server-{number}", number), admitted=True), "starting")
            for supervisor in self._supervisors.values():
                self._begin(supervisor)

    async def close(self, *, keep: bool = False) -> None:
        """Drain and stop every replica, and close the backend. Returns when all replicas are gone.

        Args:
            keep: Leave the replicas running, so that another load balancer can adopt them.

        Raises:
            BackendError: Replicas could not be stopped. The log names each of them.
        """
        async with self._roster.lock.write():
            self._closing = True
            leaving = list(self._supervisors.values())
            for supervisor in leaving:
                self._dismiss(supervisor, keep=keep and supervisor.replica.admitted)
            self._roster.publish()
        await self._changes.finish()
        for supervisor in leaving:
            self._begin(supervisor)
        failures = await _until_gone(leaving)
        for failure in failures:
            log.error("replica left behind", reason=str(failure))
        for supervisor in leaving:
            await supervisor.abandon()
        await self._backend.close()
        if failures:
            raise BackendError(f"{len(failures)} replicas were left behind: {failures[0]}")

    def hurry(self) -> None:
        """Make `close` skip every wait: no drain, no grace."""
        if not self._hurry.done():
            self._hurry.set_result(None)

    # -- changes ----------------------------------------------------------------------------------

    async def _complete(self, change: Callable[[], Coroutine[Any, Any, T]], name: str) -> T:
        """Run a change in a task of the fleet, so that it is completed even if the caller is cancelled.

        Raises:
            TaskCancelledError: The task was cancelled.
        """
        task = self._changes.start(self._log_refusal(change), name)
        await asyncio.wait({task})
        return result_of(task)

    async def _log_refusal(self, change: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            return await change()
        except BackendError as error:
            log.warning("change failed", reason=str(error))
            raise
        except LoadBalancerError as error:
            log.info("change refused", reason=str(error))
            raise

    async def _add(self, n: int, hostnames: Sequence[str]) -> list[str]:
        async with self._roster.lock.write():
            newcomers = self._reserve(n, hostnames)
        try:
            await self._launch(newcomers)
            async with self._roster.lock.write():
                self._refuse_when_closing()
                for supervisor in newcomers:
                    supervisor.replica.admitted = True
                    self._roster.move(supervisor.replica, State.UP)
                    self._begin(supervisor)
                self._roster.publish()
        except BaseException:
            rolling_back = Service(lambda: self._roll_back(newcomers), f"roll back add {n}")
            rolling_back.start()
            await asyncio.shield(rolling_back.ended)
            raise
        return await self.members()

    async def _launch(self, newcomers: Sequence[ReplicaSupervisor]) -> None:
        """Start all newcomers at the same time. The first failure tells the others to leave."""

        async def launch(supervisor: ReplicaSupervisor) -> None:
            try:
                await supervisor.launch()
            except BaseException:
                for other in newcomers:
                    other.leave()
                raise

        launches = [
            asyncio.create_task(launch(supervisor), name=f"launch of {supervisor.replica.hostname}")
            for supervisor in newcomers
        ]
        try:
            await asyncio.wait(launches)
        finally:
            for task in launches:
                task.cancel()
            await asyncio.wait(launches)
        failures = [task for task in launches if task.cancelled() or task.exception() is not None]
        # The errors of the launches that were told to leave are consequences of the first failure.
        failures.sort(key=lambda task: not task.cancelled() and isinstance(task.exception(), ClosingError))
        for task in failures:
            result_of(task)

    async def _roll_back(self, newcomers: Sequence[ReplicaSupervisor]) -> None:
        """Remove the newcomers of an `/add` that failed."""
        async with self._roster.lock.write():
            for supervisor in newcomers:
                self._dismiss(supervisor)
                self._begin(supervisor)
            self._roster.publish()
        await _until_gone(newcomers)

    async def _remove(self, n: int, hostnames: Sequence[str]) -> list[str]:
        async with self._roster.lock.write():
            leavers = self._choose(n, hostnames)
            for supervisor in leavers:
                self._dismiss(supervisor)
            self._roster.publish()
        for failure in await _until_gone(leavers):
            raise failure
        return await self.members()

    # -- plain code, under the write lock ---------------------------------------------------------

    def _reserve(self, n: int, hostnames: Sequence[str]) -> list[ReplicaSupervisor]:
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
            newcomers.append(self._enter(Replica(ReplicaSpec(name, number)), "starting"))
        return newcomers

    def _choose(self, n: int, hostnames: Sequence[str]) -> list[ReplicaSupervisor]:
        """Choose the replicas to remove: those with the given names, and others at random."""
        self._refuse_when_closing()
        members = {name: replica for name, replica in self._roster.replicas.items() if replica.counts}
        for name in hostnames:
            if name not in members:
                raise BadRequestError(f"hostname '{name}' is not in the fleet")
        if n > len(members):
            raise BadRequestError(f"cannot remove {n} replicas: there are only {len(members)}")
        others = [name for name in members if name not in hostnames]
        rest = self._rng.sample(others, n - len(hostnames))
        return [self._supervisors[members[name]] for name in [*hostnames, *rest]]

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise ClosingError("the load balancer is shutting down")

    def _enter(self, replica: Replica, event: str) -> ReplicaSupervisor:
        """Add a replica to the roster, with a supervisor that does not run yet."""
        replica.weight = self._weights.get(replica.hostname, 1)
        self._roster.add(replica, event)
        self._supervisors[replica] = ReplicaSupervisor(
            replica,
            self._backend,
            self._probe,
            self._roster,
            self._timing,
            self._starts,
            self._hurry,
            self._rng,
        )
        return self._supervisors[replica]

    def _begin(self, supervisor: ReplicaSupervisor) -> None:
        gone = supervisor.begin()
        gone.add_done_callback(lambda _: self._supervisors.pop(supervisor.replica, None))

    def _adopt(self, leftover: Found) -> None:
        replica = Replica(leftover.spec, admitted=True)
        replica.instance = leftover.instance
        if leftover.instance is None:
            replica.reason = "had ended while no load balancer was watching"
        self._enter(replica, "adopted")

    def _dismiss(self, supervisor: ReplicaSupervisor, *, keep: bool = False) -> None:
        """Take a replica out of rotation, and tell its supervisor to drain and stop it, or to keep it."""
        if supervisor.replica.state is not State.DRAINING:
            self._roster.move(supervisor.replica, State.DRAINING)
        supervisor.leave(keep=keep)


async def _until_gone(supervisors: Sequence[ReplicaSupervisor]) -> list[BackendError]:
    """Wait until replicas are gone, and return the errors of those that cannot be stopped."""
    failures = []
    for supervisor in supervisors:
        try:
            await supervisor.finished()
        except BackendError as error:
            failures.append(error)
    return failures
