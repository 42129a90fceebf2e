"""The shapes of answers, for the OpenAPI document. `changes.Change` is the shape of requests."""

from dataclasses import dataclass
from typing import Literal

from loadbalancer.fleet.state import FleetState


@dataclass
class Members:
    """The number of replicas, and their hostnames in the order of joining."""

    N: int
    replicas: list[str]


@dataclass
class MembersAnswer:
    """The members of the fleet."""

    message: Members
    status: Literal["successful"]


@dataclass
class StateAnswer:
    """The state of every replica."""

    message: FleetState
    status: Literal["successful"]


@dataclass
class SentenceAnswer:
    """A sentence."""

    message: str
    status: Literal["successful"]


@dataclass
class FailureAnswer:
    """The reason of a failure: `<Error>` and a sentence. Nothing was changed."""

    message: str
    status: Literal["failure"]
