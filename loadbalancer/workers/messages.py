"""What the control plane and its workers tell each other: one JSON object a line, over a pair of sockets."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter

MAX_LINE = 16 << 20
"""Bytes of the longest message: a rotation of a thousand replicas has about 150,000."""

PULSE = 0.1
"""Seconds after which what has changed is told at the latest, either way."""

SILENCE = 10
"""Seconds after which a worker that has told nothing is taken for stuck; reports are due each second."""


class Begin(BaseModel):
    """First of all: what a worker has to know.

    Args:
        settings: The options, without secrets.
        admin: Path of the Unix socket on which the admin application listens.
        succession: Where a successor of the control plane will say that it serves; empty: nobody survives it.
    """

    kind: Literal["begin"] = "begin"
    settings: dict[str, Any]
    admin: str
    succession: str


class Member(BaseModel):
    """An upstream in rotation.

    Args:
        id: Of this stay in rotation: one that comes back gets another.
        share: Which part of its requests it takes.
    """

    id: int
    hostname: str
    number: int
    host: str
    port: int
    weight: int
    share: float


class Rotation(BaseModel):
    """Who is in rotation from now on, and whether anybody is to come."""

    kind: Literal["rotation"] = "rotation"
    hopeful: bool
    members: list[Member]


class Reload(BaseModel):
    """Read the certificate again."""

    kind: Literal["reload"] = "reload"


class Drain(BaseModel):
    """Take no more connections, let requests in flight end, and end."""

    kind: Literal["drain"] = "drain"
    patience: float


class Ready(BaseModel):
    """Clients are served."""

    kind: Literal["ready"] = "ready"


class Account(BaseModel):
    """What has become of the requests to one member since the last report.

    Args:
        id: The member's.
        in_flight: Requests in flight, now.
        answered: Answers below 500.
        failed: Answers of 500 and above, and none in time.
        failing: How many of those were the latest, in a row.
        refused: Connections that were not accepted.
    """

    id: int
    in_flight: int
    answered: int
    failed: int
    failing: int
    refused: int


class Report(BaseModel):
    """What a worker has counted since the last one; also its sign of life.

    Args:
        in_flight: Requests in flight, now, those that have no member yet included.
        requests: Replica, status and how many.
        latency: How many in each bucket of the histogram.
        seconds: That they took together.
        accounts: Of members about whom there is news.
    """

    kind: Literal["report"] = "report"
    in_flight: int
    requests: list[tuple[str, int, int]]
    latency: list[int]
    seconds: float
    accounts: list[Account]


class Released(BaseModel):
    """A member that left the rotation has nothing in flight any more, nor a connection."""

    kind: Literal["released"] = "released"
    id: int


Order = Annotated[Begin | Rotation | Reload | Drain, Field(discriminator="kind")]
News = Annotated[Ready | Report | Released, Field(discriminator="kind")]

orders: TypeAdapter[Begin | Rotation | Reload | Drain] = TypeAdapter(Order)
"""Reads what a worker is told."""

news: TypeAdapter[Ready | Report | Released] = TypeAdapter(News)
"""Reads what a worker tells."""


Tell = Callable[[BaseModel], None]
"""Sends a message."""


def line(message: BaseModel) -> bytes:
    """A message as it is sent."""
    return message.model_dump_json().encode() + b"\n"
