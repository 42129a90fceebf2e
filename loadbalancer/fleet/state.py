"""What the fleet tells of itself to `/lb/replicas`: plain frozen values."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """One replica, as of now."""

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
    """The whole fleet, as of now."""

    desired: int
    replicas: tuple[ReplicaState, ...]
