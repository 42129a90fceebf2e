"""The roster: who is in the fleet, in which state, and the snapshot that requests go by.

This is the state that the fleet's lock guards. It changes here and nowhere else, in a few lines of plain
code at a time, and is told to the observer as it changes.
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
    """Whoever keeps the journal of the replicas' lives."""

    def replica_event(self, event: str, replica: Replica, reason: str | None = None) -> None:
        """Something has happened to a replica: `starting`, `up`, `missed`, `down`, `draining`, `gone` …"""


class Roster:
    """The replicas of a fleet, by hostname.

    Args:
        observer: Told of every event of a replica's life.
        make_snapshot: Builds the snapshot (ring and policy) over the upstreams in rotation.
    """

    def __init__(self, observer: Observer, make_snapshot: Callable[[Sequence[Upstream]], Snapshot]) -> None:
        self.lock = FleetLock()
        self.replicas: dict[str, Replica] = {}
        self._observer = observer
        self._make_snapshot = make_snapshot
        self.publication = Publication(make_snapshot(()), lambda: self.size > 0)

    # -- to be read ---------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """N: how many replicas there should be."""
        return sum(replica.counts for replica in self.replicas.values())

    def census(self) -> dict[str, int]:
        """How many replicas there are in each state."""
        count = Counter(replica.shown_state for replica in self.replicas.values())
        return {state.value: count[state.value] for state in State if state is not State.GONE}

    async def members(self) -> list[str]:
        """The hostnames of the N, in the order of their ring numbers."""
        async with self.lock.read():
            return [replica.hostname for replica in self._in_order() if replica.counts]

    async def describe(self) -> FleetState:
        """The state of every replica, also of those coming and going."""
        async with self.lock.read():
            return FleetState(desired=self.size, replicas=tuple(map(_describe, self._in_order())))

    # -- to be called under the write lock ------------------------------------------------------------

    def enter(self, replica: Replica, event: str) -> None:
        """Take a replica in that is starting, or has been found."""
        self.replicas[replica.hostname] = replica
        self._observer.replica_event(event, replica)

    def move(self, replica: Replica, state: State, reason: str | None = None) -> None:
        """Let a replica enter a state."""
        replica.move(state, reason)
        self._observer.replica_event(state.value, replica, reason)

    def publish(self) -> None:
        """Let requests go by what is in rotation now."""
        serving = [r.upstream for r in self._in_order() if r.serves and r.upstream is not None]
        self.publication.publish(self._make_snapshot(serving))

    # -- what keepers report (see `keeper.Registry`); these take the lock themselves -------------------

    async def started(self, replica: Replica, instance: Instance) -> None:
        """An instance fills the replica's place."""
        async with self.lock.write():
            replica.instance = instance

    async def in_rotation(self, replica: Replica) -> None:
        """The replica is up: put it on the ring, unless it has been told to leave meanwhile."""
        async with self.lock.write():
            if replica.state is State.STARTING:
                self.move(replica, State.UP)
                self.publish()

    async def out_of_rotation(self, replica: Replica, reason: str) -> None:
        """The replica is down, or could not start: take it off the ring and forget its instance."""
        async with self.lock.write():
            replica.instance = None
            if replica.state in (State.UP, State.STARTING):
                self.move(replica, State.DOWN, reason)
                self.publish()

    async def restarting(self, replica: Replica) -> None:
        """A replacement is about to be started."""
        async with self.lock.write():
            if replica.state is State.DOWN:
                replica.restarts += 1
                self.move(replica, State.STARTING)

    async def beat(self, replica: Replica, miss: str | None) -> int:
        """Count a heartbeat, good (None) or missed (the reason); return the misses in a row."""
        async with self.lock.write():
            if miss is None:
                replica.missed = 0
            else:
                replica.missed += 1
                self._observer.replica_event("missed", replica, miss)
            return replica.missed

    async def explained(self, replica: Replica, reason: str) -> None:
        """More has become known of why it is down."""
        async with self.lock.write():
            replica.reason = reason
            self._observer.replica_event("explained", replica, reason)

    async def eject(self, replica: Replica, reason: str) -> bool:
        """Take a living replica off the ring, unless half of the fleet is; say whether it was done."""
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
        """Put it back on the ring."""
        async with self.lock.write():
            if replica.ejected:
                replica.ejected = False
                self._observer.replica_event("readmitted", replica)
                self.publish()

    async def gone(self, replica: Replica) -> None:
        """The replica has ended: free its name and number."""
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
