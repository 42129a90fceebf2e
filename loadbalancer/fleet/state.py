"""The state of the fleet that `/lb/replicas` shows: plain frozen values."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """The state of one replica at one moment."""

    hostname: str
    number: int
    state: str
    address: str | None
    id: str | None
    in_flight: int
    missed: int
    restarts: int
    since: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class FleetState:
    """The state of the whole fleet at one moment."""

    desired: int
    replicas: tuple[ReplicaState, ...]
