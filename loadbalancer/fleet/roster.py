"""The roster: the replicas of a fleet with their states, and the snapshot that requests use.

The lock of the fleet guards this state. It changes only here, in short pieces of plain code, and the observer
hears of each change.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from loadbalancer.fleet.backends.base import Instance
from loadbalancer.fleet.lock import FleetLock
from loadbalancer.fleet.replica import Replica, State
from loadbalancer.fleet.state import FleetState, ReplicaState
from loadbalancer.publication import Publication
from loadbalancer.routing.snapshot import Snapshot
from loadbalancer.routing.upstream import Upstream


class Observer(Protocol):
    """Hears of every event of every replica; see `Journal`."""

    def replica_event(self, event: str, replica: Replica, reason: str | None = None) -> None:
        """Take note of an event: `starting`, `up`, `missed`, `down`, `draining`, `gone` and others."""


class Roster:
    """The replicas of a fleet, by hostname.

    Args:
        observer: Hears of every event of every replica.
        make_snapshot: Builds the snapshot (ring and policy) from the upstreams in rotation.
    """

    def __init__(self, observer: Observer, make_snapshot: Callable[[Sequence[Upstream]], Snapshot]) -> None:
        self.lock = FleetLock()
        self.replicas: dict[str, Replica] = {}
        self._observer = observer
        self._make_snapshot = make_snapshot
        self.publication = Publication(make_snapshot(()), lambda: self.size > 0)

    # -- reading ------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """N: the number of replicas that the fleet keeps alive."""
        return sum(replica.counts for replica in self.replicas.values())

    def census(self) -> dict[str, int]:
        """The number of replicas in each state."""
        count = Counter(replica.shown_state for replica in self.replicas.values())
        return {state.value: count[state.value] for state in State if state is not State.GONE}

    async def members(self) -> list[str]:
        """The hostnames of the N replicas, in the order of their ring numbers."""
        async with self.lock.read():
            return [replica.hostname for replica in self._in_order() if replica.counts]

    async def describe(self) -> FleetState:
        """The state of every replica, including those that are joining or leaving."""
        async with self.lock.read():
            return FleetState(desired=self.size, replicas=tuple(map(_describe, self._in_order())))

    # -- for callers that hold the write lock -----------------------------------------------------------

    def add(self, replica: Replica, event: str) -> None:
        """Add a replica that starts (event `starting`) or that an earlier run has left (`adopted`)."""
        self.replicas[replica.hostname] = replica
        self._observer.replica_event(event, replica)

    def move(self, replica: Replica, state: State, reason: str | None = None) -> None:
        """Move a replica to another state."""
        replica.move(state, reason)
        self._observer.replica_event(state.value, replica, reason)

    def publish(self) -> None:
        """Publish a snapshot of the replicas that are in rotation now."""
        serving = [r.upstream for r in self._in_order() if r.serves and r.upstream is not None]
        self.publication.publish(self._make_snapshot(serving))

    # -- for supervisors and health recorders; these methods take the write lock ------------------------

    async def record_start(self, replica: Replica, instance: Instance) -> None:
        """Record the instance that now runs for a replica."""
        async with self.lock.write():
            replica.instance = instance

    async def enter_rotation(self, replica: Replica) -> None:
        """Move a replica to `up`, unless it has been told to leave."""
        async with self.lock.write():
            if replica.state is State.STARTING:
                self.move(replica, State.UP)
                self.publish()

    async def leave_rotation(self, replica: Replica, reason: str) -> None:
        """Move a replica to `down`, unless it has been told to leave, and forget its instance."""
        async with self.lock.write():
            replica.instance = None
            if replica.state in (State.UP, State.STARTING):
                self.move(replica, State.DOWN, reason)
                self.publish()

    async def record_restart(self, replica: Replica) -> None:
        """Move a replica from `down` to `starting`, because its replacement is about to start."""
        async with self.lock.write():
            if replica.state is State.DOWN:
                replica.restarts += 1
                self.move(replica, State.STARTING)

    async def record_heartbeat(self, replica: Replica, miss: str | None) -> int:
        """Record a heartbeat.

        Args:
            replica: The replica.
            miss: Why the heartbeat was missed; None: it was good.

        Returns:
            The number of heartbeats missed in a row.
        """
        async with self.lock.write():
            if miss is None:
                replica.missed = 0
            else:
                replica.missed += 1
                self._observer.replica_event("missed", replica, miss)
            return replica.missed

    async def record_explanation(self, replica: Replica, reason: str) -> None:
        """Record a better explanation of why a replica is down."""
        async with self.lock.write():
            replica.reason = reason
            self._observer.replica_event("explained", replica, reason)

    async def eject(self, replica: Replica, reason: str) -> bool:
        """Take a replica that is alive out of rotation.

        Returns:
            False if the replica stays, because half of the fleet would otherwise be ejected.
        """
        async with self.lock.write():
            up = [other for other in self.replicas.values() if other.state is State.UP]
            ejected = sum(other.ejected for other in up)
            if not replica.serves or 2 * (ejected + 1) > len(up):
                return False
            replica.ejected = True
            replica.reason = reason
            self._observer.replica_event("ejected", replica, reason)
            self.publish()
            return True

    async def readmit(self, replica: Replica) -> None:
        """Put a replica back into rotation if it is ejected."""
        async with self.lock.write():
            if replica.ejected:
                replica.ejected = False
                self._observer.replica_event("readmitted", replica)
                self.publish()

    async def remove(self, replica: Replica) -> None:
        """Remove a replica that has been stopped. Its hostname and number are free again."""
        async with self.lock.write():
            self.move(replica, State.GONE)
            self.replicas.pop(replica.hostname, None)

    def _in_order(self) -> list[Replica]:
        return sorted(self.replicas.values(), key=lambda replica: replica.number)


def _describe(replica: Replica) -> ReplicaState:
    instance, upstream = replica.instance, replica.upstream
    return ReplicaState(
        hostname=replica.hostname,
        number=replica.number,
        state=replica.shown_state,
        address=instance.address if instance else None,
        id=instance.id if instance else None,
        in_flight=upstream.in_flight if upstream else 0,
        missed=replica.missed,
        restarts=replica.restarts,
        since=replica.since.strftime("%Y-%m-%dT%H:%M:%SZ"),
        reason=replica.reason,
    )
