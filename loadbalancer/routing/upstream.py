"""An upstream: what routing and the data path know of one replica that is in rotation.

Its identity is frozen. What the data path notes of it is not: requests in flight, answers, failures.
Nobody else may touch those; policies read them, and the fleet, which hears of them through the callbacks
and sets the share that the replica takes. A replacement of
a dead replica is a new upstream under the old name and number, with a count of its own.

Requests in flight are counted by `acquire`, `release` and `count`, never by assignment: they keep the
`Load` of the upstream's policy true as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


class Load:
    """What a policy knows of the load on its upstreams without asking each of them.

    An upstream belongs to one load at a time, the last that was made over it. So the policy of a new
    snapshot takes over what is in flight, also of requests that were picked by the policy before; and what
    ends on an upstream that has left the rotation changes nothing for those that are in it.

    Args:
        upstreams: Those of the policy.
    """

    __slots__ = ("eased", "in_flight")

    def __init__(self, upstreams: "Sequence[Upstream]" = ()) -> None:
        self.in_flight = sum([upstream.in_flight for upstream in upstreams])
        """Requests in flight on all its upstreams together."""
        self.eased: dict[Upstream, None] | None = None
        """Upstreams that have fewer requests in flight than before, if the policy wants to know them."""
        for upstream in upstreams:
            upstream.load = self


@dataclass(eq=False, slots=True)
class Upstream:
    """One replica in rotation.

    Args:
        hostname: Its name in the fleet, as `/rep` lists it.
        number: Its number on the ring: 1, 2, 3 … in the order of joining.
        host: Address to connect to, or the path of a Unix socket.
        port: Port to connect to; 0 for a Unix socket.
        weight: Its share of the requests relative to the others', for the weighted policy.
    """

    hostname: str
    number: int
    host: str
    port: int
    weight: int = 1
    in_flight: int = field(default=0, init=False)
    answered: int = field(default=0, init=False)
    """Answers below 500 that it has begun: proof of life while heartbeats queue behind requests."""
    failures: int = field(default=0, init=False)
    """Requests in a row that it has failed: answered with 500 or above, or not in time."""
    held: int = field(default=0, init=False)
    """Worker processes that may have requests in flight to it which are not counted here yet."""
    share: float = field(default=1.0, init=False)
    """Which part of the requests that fall to it, it takes: less than 1 while it eases in."""
    on_refused: Callable[[], None] | None = field(default=None, init=False, repr=False)
    """Called when it refuses a connection."""
    on_failed: Callable[[int], None] | None = field(default=None, init=False, repr=False)
    """Called when it fails a request, with the number of failures in a row."""
    on_retired: list[Callable[[], None]] = field(default_factory=list, init=False, repr=False)
    """Called when it has left and nothing is in flight: close its idle connections."""
    on_idle: Callable[[], None] | None = field(default=None, init=False, repr=False)
    """Called when the last request in flight has ended; the fleet sets it while it drains the replica."""
    load: Load = field(default_factory=Load, init=False, repr=False)
    """The load that its requests in flight are part of."""

    def acquire(self) -> None:
        """Count one request more in flight. Every call is followed by exactly one `release`."""
        self.in_flight += 1
        self.load.in_flight += 1

    def release(self) -> None:
        """Count one request less in flight."""
        self.in_flight -= 1
        load = self.load
        load.in_flight -= 1
        if load.eased is not None:
            load.eased[self] = None
        if self.in_flight == 0 and self.on_idle is not None and not self.held:
            self.on_idle()

    def count(self, change: int) -> None:
        """Count requests in flight that a worker process reports: so many more, or less if negative."""
        self.in_flight += change
        self.load.in_flight += change
        if self.load.eased is not None:
            self.load.eased[self] = None

    @property
    def busy(self) -> bool:
        """Whether anything is in flight, or may be."""
        return self.in_flight > 0 or self.held > 0

    def let_go(self, in_flight: int) -> None:
        """Note that a worker process has done with it.

        Args:
            in_flight: How many of the requests counted here were that worker's.
        """
        self.count(-in_flight)
        self.held -= 1
        if not self.busy and self.on_idle is not None:
            self.on_idle()

    def answered_with(self, status: int) -> None:
        """Note the status of an answer: 500 and above is a failure."""
        if status < 500:
            self.answered += 1
            self.failures = 0
        else:
            self.failed()

    def failed(self) -> None:
        """Note an answer of 500 or above, or none in time."""
        self.failures += 1
        if self.on_failed is not None:
            self.on_failed(self.failures)

    def refused(self) -> None:
        """Note a connection that it did not accept."""
        if self.on_refused is not None:
            self.on_refused()

    def retire(self) -> None:
        """It gets no more requests: let go of it as soon as nothing is in flight."""
        if self.busy:
            self.on_idle = self.retire
            return
        while self.on_retired:
            self.on_retired.pop()()

    @property
    def address(self) -> str:
        """`host:port`, as people and `Host` headers write it."""
        return authority(self.host, self.port) if self.port else "localhost"


def authority(host: str, port: int) -> str:
    """Write `host:port`, with an IPv6 address in brackets (RFC 3986 §3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
