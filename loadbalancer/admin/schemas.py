"""The shapes of requests and answers, from which the OpenAPI document is made."""

from dataclasses import dataclass, field
from typing import Literal

from loadbalancer.fleet.state import FleetState


@dataclass
class ChangeRequest:
    """How many replicas to add or remove, and their names.

    `N` is accepted for `n`, and `replicas` for `hostnames`.
    """

    n: int
    hostnames: list[str] = field(default_factory=list)


@dataclass
class ChangeQuery:
    """The same in a query; several hostnames are separated by commas."""

    n: int | None = None
    hostnames: str | None = None


@dataclass
class Members:
    """How many replicas there are, and their hostnames in the order of their ring numbers."""

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
    """What went wrong: `<Error>` and a sentence. Nothing was changed."""

    message: str
    status: Literal["failure"]
