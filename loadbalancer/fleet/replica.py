"""A replica and its states: a pure state machine.

            ┌──────────────◄───────────────┐
    starting ──► up ──► down ──────────────┘        down: dead, its replacement not started yet
        │  ▲      │       │
        │  └ down │       │                         starting ──► down when a start fails
        ▼         ▼       ▼
        └───► draining ◄──┘ ──► gone                draining: off the ring, finishing its requests

Only an `up` replica is in rotation. A replica keeps its hostname and ring number through all replacements.
Its `instance`, the container or process that runs under that name, changes.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from loadbalancer.fleet.backends.base import Instance, ReplicaSpec
from loadbalancer.routing.upstream import Upstream


class State(StrEnum):
    """The state of a replica."""

    STARTING = "starting"
    UP = "up"
    DRAINING = "draining"
    DOWN = "down"
    GONE = "gone"


_NEXT: dict[State, frozenset[State]] = {
    State.STARTING: frozenset({State.UP, State.DOWN, State.DRAINING, State.GONE}),
    State.UP: frozenset({State.DOWN, State.DRAINING}),
    State.DOWN: frozenset({State.STARTING, State.DRAINING}),
    State.DRAINING: frozenset({State.GONE}),
    State.GONE: frozenset(),
}


class IllegalTransitionError(Exception):
    """The current state of a replica does not lead to the new one. This is a defect of the fleet."""


@dataclass(eq=False)
class Replica:
    """One member of the fleet: a hostname, a ring number, and the instance that runs under them.

    Args:
        spec: Hostname and ring number.
        weight: Weight under the weighted policy.
        admitted: Whether the replica is one of the N. A replica of an unfinished `/add` is not.
    """

    spec: ReplicaSpec
    weight: int = 1
    admitted: bool = False
    state: State = field(default=State.STARTING, init=False)
    instance: Instance | None = field(default=None, init=False)
    upstream: Upstream | None = field(default=None, init=False)
    ejected: bool = field(default=False, init=False)
    """Whether it is out of rotation for a limited time, although it is up: see `health_recorder`."""
    missed: int = field(default=0, init=False)
    """Heartbeats missed in a row."""
    restarts: int = field(default=0, init=False)
    """The number of instances that have replaced a dead one."""
    since: datetime = field(default_factory=lambda: datetime.now(UTC), init=False)
    reason: str | None = field(default=None, init=False)
    """Why the replica was last replaced or ejected, or cannot start, in words."""

    @property
    def hostname(self) -> str:
        """The hostname."""
        return self.spec.hostname

    @property
    def number(self) -> int:
        """The ring number."""
        return self.spec.number

    @property
    def serves(self) -> bool:
        """Whether the replica is in rotation."""
        return self.state is State.UP and not self.ejected

    @property
    def shown_state(self) -> str:
        """The state that users see. An ejected replica is shown as `down`, because it serves no requests."""
        return (State.DOWN if self.ejected else self.state).value

    @property
    def counts(self) -> bool:
        """Whether the replica is one of the N that the fleet keeps alive."""
        return self.admitted and self.state not in (State.DRAINING, State.GONE)

    def move(self, state: State, reason: str | None = None) -> None:
        """Enter a state. The state `up` creates an upstream for the current instance; other states retire it.

        A draining replica keeps its upstream, whose count shows when the last request has ended.

        Args:
            state: The next state.
            reason: The reason of a failure; None: the last reason stays.

        Raises:
            IllegalTransitionError: The current state does not lead to the next one.
        """
        if state not in _NEXT[self.state]:
            raise IllegalTransitionError(f"{self.hostname} cannot go from {self.state} to {state}")
        if state is State.UP:
            if self.instance is None:
                raise IllegalTransitionError(f"{self.hostname} cannot be up without an instance")
            self.upstream = Upstream(
                self.hostname, self.number, self.instance.host, self.instance.port, self.weight
            )
            self.missed = 0
        elif state is not State.DRAINING and self.upstream is not None:
            self.upstream.retire()
            self.upstream = None
        self.state = state
        self.ejected = False
        self.since = datetime.now(UTC)
        if reason is not None:
            self.reason = reason
