"""A replica and the states of its life: a pure state machine.

            ┌──────────────◄───────────────┐
    starting ──► up ──► down ──────────────┘        down: dead, its replacement not started yet
        │  ▲      │       │
        │  └ down │       │                         starting ──► down when a start fails
        ▼         ▼       ▼
        └───► draining ◄──┘ ──► gone                draining: off the ring, finishing what it has

Only an `up` replica is in rotation. A replica keeps its hostname and ring number through all
replacements; what changes is its `instance`, the container or process behind the name.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from loadbalancer.fleet.backends.base import Instance, ReplicaSpec
from loadbalancer.routing.upstream import Upstream


class State(StrEnum):
    """Where a replica is in its life."""

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
    """A replica was moved to a state that its state does not lead to: a defect of the fleet."""


@dataclass(eq=False)
class Replica:
    """One place in the fleet: a name, a ring number, and whoever fills it now.

    Args:
        spec: Hostname and ring number.
        weight: Its share under the weighted policy.
        admitted: Whether it counts among the N. A replica of an `/add` that is still going on does not.
    """

    spec: ReplicaSpec
    weight: int = 1
    admitted: bool = False
    state: State = field(default=State.STARTING, init=False)
    instance: Instance | None = field(default=None, init=False)
    upstream: Upstream | None = field(default=None, init=False)
    ejected: bool = field(default=False, init=False)
    """Whether it is out of rotation for a while, though it is up: see `watch`."""
    missed: int = field(default=0, init=False)
    """Heartbeats missed in a row."""
    restarts: int = field(default=0, init=False)
    """How often a new instance has taken the place of a dead one."""
    since: datetime = field(default_factory=lambda: datetime.now(UTC), init=False)
    reason: str | None = field(default=None, init=False)
    """Why it was last replaced or cannot start, in words."""

    @property
    def hostname(self) -> str:
        """Its name."""
        return self.spec.hostname

    @property
    def number(self) -> int:
        """Its number on the ring."""
        return self.spec.number

    @property
    def serves(self) -> bool:
        """Whether it is in rotation."""
        return self.state is State.UP and not self.ejected

    @property
    def shown_state(self) -> str:
        """The state as it is told: who is ejected serves as little as who is down."""
        return (State.DOWN if self.ejected else self.state).value

    @property
    def counts(self) -> bool:
        """Whether it is one of the N that the fleet keeps alive."""
        return self.admitted and self.state not in (State.DRAINING, State.GONE)

    def move(self, state: State, reason: str | None = None) -> None:
        """Enter a state; `up` puts an upstream for the current instance in place, others take it away.

        A draining replica keeps its upstream, whose count says when the last request has ended.

        Args:
            state: The next state.
            reason: Why, when it is a failure; otherwise the last known reason stays.

        Raises:
            IllegalTransitionError: The present state does not lead there.
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
