"""The messages between the control plane and its workers: JSON lines over a socket pair.

The control plane sends commands, and a worker sends notices.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from loadbalancer.tls import KeyPair

MAX_LINE = 16 << 20
"""Maximum bytes of a message. A rotation of a thousand replicas has about 150,000."""

PULSE = 0.1
"""Maximum seconds until either side sends a change."""

SIGN_OF_LIFE = 0.25
"""Maximum seconds between two reports of a worker, even without changes."""


class Message(BaseModel):
    """A message. Validation errors do not quote it, because it may contain a private key."""

    model_config = ConfigDict(hide_input_in_errors=True)


class Pem(Message):
    """A certificate and its private key.

    Args:
        cert: PEM text, one character for each byte.
        key: PEM text, one character for each byte.
    """

    cert: str = Field(repr=False)
    key: str = Field(repr=False)

    @classmethod
    def of(cls, pair: KeyPair) -> Self:
        """Make the message of a pair."""
        return cls(cert=pair.cert.decode("latin-1"), key=pair.key.decode("latin-1"))

    def pair(self) -> KeyPair:
        """Return the pair of the message."""
        return KeyPair(self.cert.encode("latin-1"), self.key.encode("latin-1"))


class Begin(Message):
    """The first command: the configuration of a worker.

    Args:
        settings: The options, without secrets.
        admin: The path of the Unix socket on which the admin application listens.
        succession: The name of the socket on which a successor of the control plane will answer; empty: the
            worker ends with its control plane.
        certificate: The certificate for client connections; None: plain HTTP.
    """

    kind: Literal["begin"] = "begin"
    settings: dict[str, Any]
    admin: str
    succession: str
    certificate: Pem | None


class Member(Message):
    """An upstream in rotation.

    Args:
        id: The number of the worker's lease. An upstream that returns to the rotation gets another lease.
        share: The fraction of its normal share of requests that it accepts.
    """

    id: int
    hostname: str
    number: int
    host: str
    port: int
    weight: int
    share: float


class Rotation(Message):
    """The current rotation.

    Args:
        expects_upstream: Whether an upstream is expected to enter the rotation soon.
        members: The upstreams in rotation.
    """

    kind: Literal["rotation"] = "rotation"
    expects_upstream: bool
    members: list[Member]


class Accept(Message):
    """Accept connections from these listening sockets, and from no others.

    Args:
        listeners: Indices into the sockets that the worker was started with.
    """

    kind: Literal["accept"] = "accept"
    listeners: list[int]


class Renew(Message):
    """Use another certificate for new connections."""

    kind: Literal["renew"] = "renew"
    certificate: Pem


class Drain(Message):
    """Accept no more connections, finish the requests in flight, and end.

    Args:
        patience: Maximum seconds for the requests in flight.
    """

    kind: Literal["drain"] = "drain"
    patience: float


class Ready(Message):
    """The worker serves clients."""

    kind: Literal["ready"] = "ready"


class MemberReport(Message):
    """The counts of one upstream since the last report.

    Args:
        id: The number of the lease.
        in_flight: The current number of requests in flight.
        successes: Answers below 500.
        failures: Answers of 500 and above, and requests without an answer in time.
        consecutive_failures: The current number of failures since the last success.
        refusals: Connections that the replica has refused.
    """

    id: int
    in_flight: int
    successes: int
    failures: int
    consecutive_failures: int
    refusals: int


class Report(Message):
    """The counts of a worker since the last report; also a sign of life.

    Args:
        in_flight: The current number of requests in flight, including those that wait for a replica.
        requests: Replica, status, and number of requests.
        latency: The number of requests in each bucket of the histogram.
        seconds: The sum of the durations.
        members: The upstreams whose counts have changed.
    """

    kind: Literal["report"] = "report"
    in_flight: int
    requests: list[tuple[str, int, int]]
    latency: list[int]
    seconds: float
    members: list[MemberReport]


class LeaseEnded(Message):
    """A lease has ended: the upstream has left, and the worker has no request and no connection to it.

    Args:
        id: The number of the lease.
    """

    kind: Literal["lease-ended"] = "lease-ended"
    id: int


Command = Begin | Rotation | Accept | Renew | Drain
"""A message from the control plane."""

Notice = Ready | Report | LeaseEnded
"""A message from a worker."""

commands: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="kind")])
"""Parses a command."""

notices: TypeAdapter[Notice] = TypeAdapter(Annotated[Notice, Field(discriminator="kind")])
"""Parses a notice."""

Send = Callable[[Message], None]
"""Sends a message without waiting."""


def line(message: Message) -> bytes:
    """Encode a message as a line."""
    return message.model_dump_json().encode() + b"\n"
