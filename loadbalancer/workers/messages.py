"""The messages between the control plane and its workers: one JSON object a line, over a pair of sockets."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from loadbalancer.tls import KeyPair

MAX_LINE = 16 << 20
"""Bytes of the longest message: a rotation of a thousand replicas has about 150,000."""

PULSE = 0.1
"""Seconds within which either side sends what has changed."""

SIGN_OF_LIFE = 0.25
"""Seconds within which a worker sends a report, even if there is no news."""


class Message(BaseModel):
    """One line. Errors about it do not quote it, because it may hold a private key."""

    model_config = ConfigDict(hide_input_in_errors=True)


class Pem(Message):
    """A certificate and its key, as the control plane holds them.

    Args:
        cert: PEM text, one character for each byte.
        key: PEM text, one character for each byte.
    """

    cert: str = Field(repr=False)
    key: str = Field(repr=False)

    @classmethod
    def of(cls, pair: KeyPair) -> Self:
        """The message that carries a pair."""
        return cls(cert=pair.cert.decode("latin-1"), key=pair.key.decode("latin-1"))

    def pair(self) -> KeyPair:
        """The pair that the message carries."""
        return KeyPair(self.cert.encode("latin-1"), self.key.encode("latin-1"))


class Begin(Message):
    """The first command: what a worker has to know.

    Args:
        settings: The options, without secrets.
        admin: Path of the Unix socket on which the admin application listens.
        succession: Name of the socket on which a successor of the control plane will answer; empty: the
            worker does not outlive its control plane.
        certificate: The certificate that clients are served with; None: plain HTTP.
    """

    kind: Literal["begin"] = "begin"
    settings: dict[str, Any]
    admin: str
    succession: str
    certificate: Pem | None


class Member(Message):
    """An upstream in rotation.

    Args:
        id: Number of the worker's lease of it: an upstream that comes back gets another lease.
        share: Fraction of its normal share of requests that it accepts.
    """

    id: int
    hostname: str
    number: int
    host: str
    port: int
    weight: int
    share: float


class Rotation(Message):
    """The upstreams in rotation from now on.

    Args:
        expects_upstream: Whether there will be a replica in rotation by and by.
        members: The upstreams.
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
    """Use another certificate for the connections that come from now on."""

    kind: Literal["renew"] = "renew"
    certificate: Pem


class Drain(Message):
    """Take no more connections, let requests in flight end, and end.

    Args:
        patience: Seconds for the requests in flight.
    """

    kind: Literal["drain"] = "drain"
    patience: float


class Ready(Message):
    """The worker serves clients."""

    kind: Literal["ready"] = "ready"


class MemberReport(Message):
    """What has become of the requests to one upstream since the last report.

    Args:
        id: Number of the lease.
        in_flight: Requests in flight, now.
        answered: Answers below 500.
        failed: Answers of 500 and above, and requests without an answer in time.
        failing: How many of those were the latest, in a row.
        refused: Connections that the replica did not accept.
    """

    id: int
    in_flight: int
    answered: int
    failed: int
    failing: int
    refused: int


class Report(Message):
    """What a worker has counted since the last report; also its sign of life.

    Args:
        in_flight: Requests in flight, now; this includes requests that wait for a replica.
        requests: Replica, status and number of requests.
        latency: Number of requests in each bucket of the histogram.
        seconds: Their durations together.
        members: The upstreams about which there is news.
    """

    kind: Literal["report"] = "report"
    in_flight: int
    requests: list[tuple[str, int, int]]
    latency: list[int]
    seconds: float
    members: list[MemberReport]


class Released(Message):
    """A lease has ended: the upstream has left, and the worker has no request and no connection to it.

    Args:
        id: Number of the lease.
    """

    kind: Literal["released"] = "released"
    id: int


Command = Begin | Rotation | Accept | Renew | Drain
"""What the control plane sends."""

Notice = Ready | Report | Released
"""What a worker sends."""

commands: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="kind")])
"""Reads a command."""

notices: TypeAdapter[Notice] = TypeAdapter(Annotated[Notice, Field(discriminator="kind")])
"""Reads a notice."""

Send = Callable[[Message], None]
"""Sends a message; never waits."""


def line(message: Message) -> bytes:
    """A message as it is sent."""
    return message.model_dump_json().encode() + b"\n"
