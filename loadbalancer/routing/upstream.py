"""An upstream: one replica in rotation, as routing and the data path see it.

The identity of an upstream never changes. A replica that replaces a dead one is a new upstream with the same
hostname and number. The data path records requests in flight, answers and failures on the upstream. Policies
read the counts. The fleet receives callbacks, and sets the share of the requests that the upstream accepts.

`acquire`, `release` and `add_in_flight` alone change the number of requests in flight, because they also
update the `Load` of the policy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


class Load:
    """The requests in flight on all upstreams of a policy, so that a policy need not add them up.

    Each upstream belongs to one load: the last one made with it. So the load of a new policy includes
    the requests that earlier policies have picked. An upstream that has left the rotation keeps its old load,
    and the end of its requests does not change the current one.

    Args:
        upstreams: The upstreams of the policy.
    """

    __slots__ = ("eased", "in_flight")

    def __init__(self, upstreams: "Sequence[Upstream]" = ()) -> None:
        self.in_flight = sum([upstream.in_flight for upstream in upstreams])
        """Requests in flight on all upstreams together."""
        self.eased: dict[Upstream, None] | None = None
        """The upstreams whose requests in flight have decreased, if the policy tracks them; else None."""
        for upstream in upstreams:
            upstream.load = self


@dataclass(eq=False, slots=True)
class Upstream:
    """One replica in rotation.

    Args:
        hostname: The replica's name in the fleet, as in `/rep`.
        number: The replica's number on the ring: 1, 2, 3 … in the order of joining.
        host: The address to connect to, or the path of a Unix socket.
        port: The port to connect to; 0 for a Unix socket.
        weight: The share of requests relative to the weights of others, for the weighted policy.
    """

    hostname: str
    number: int
    host: str
    port: int
    weight: int = 1
    in_flight: int = field(default=0, init=False)
    """Requests in flight."""
    successes: int = field(default=0, init=False)
    """Answers below 500 that have begun: a sign of life when a heartbeat is late because of many requests."""
    consecutive_failures: int = field(default=0, init=False)
    """Failed requests since the last success: answers of 500 and above, and missing answers."""
    leases: int = field(default=0, init=False)
    """Worker processes that may have requests in flight which `in_flight` does not include yet."""
    share: float = field(default=1.0, init=False)
    """Fraction of its normal share of requests that it accepts; below 1 during a slow start."""
    on_refusal: Callable[[], None] | None = field(default=None, init=False, repr=False)
    """Called when the replica refuses a connection."""
    on_failure: Callable[[int], None] | None = field(default=None, init=False, repr=False)
    """Called when a request fails, with the number of consecutive failures."""
    on_retired: list[Callable[[], None]] = field(default_factory=list, init=False, repr=False)
    """Called when the upstream has left the rotation and is idle, to close connections."""
    on_idle: Callable[[], None] | None = field(default=None, init=False, repr=False)
    """Called when the last request in flight ends, while the upstream is being drained."""
    load: Load = field(default_factory=Load, init=False, repr=False)
    """The load that includes the requests in flight of this upstream."""

    @property
    def busy(self) -> bool:
        """Whether requests are in flight, or may be in flight in a worker process."""
        return self.in_flight > 0 or self.leases > 0

    @property
    def address(self) -> str:
        """The address as `host:port`, for messages and `Host` headers."""
        return authority(self.host, self.port) if self.port else "localhost"

    def acquire(self) -> None:
        """Count one more request in flight. Exactly one `release` follows each call."""
        self.in_flight += 1
        self.load.in_flight += 1

    def release(self) -> None:
        """Count one request in flight less."""
        self.in_flight -= 1
        load = self.load
        load.in_flight -= 1
        if load.eased is not None:
            load.eased[self] = None
        if self.in_flight == 0 and self.on_idle is not None and not self.leases:
            self.on_idle()

    def add_in_flight(self, change: int) -> None:
        """Add the change that a worker process reports to the requests in flight.

        Args:
            change: The difference to the last report; may be negative.
        """
        self.in_flight += change
        self.load.in_flight += change
        if self.load.eased is not None:
            self.load.eased[self] = None

    def end_lease(self, in_flight: int) -> None:
        """Record that a worker process no longer uses the upstream.

        Args:
            in_flight: The number of that worker's requests which `in_flight` still includes.
        """
        self.add_in_flight(-in_flight)
        self.leases -= 1
        if not self.busy and self.on_idle is not None:
            self.on_idle()

    def record_answer(self, status: int) -> None:
        """Record the status of an answer. A status of 500 or above is a failure."""
        if status < 500:
            self.successes += 1
            self.consecutive_failures = 0
        else:
            self.record_failure()

    def record_failure(self) -> None:
        """Record a failed request: an answer of 500 or above, or no answer in time."""
        self.consecutive_failures += 1
        if self.on_failure is not None:
            self.on_failure(self.consecutive_failures)

    def record_refusal(self) -> None:
        """Record a connection that the replica has refused."""
        if self.on_refusal is not None:
            self.on_refusal()

    def retire(self) -> None:
        """Take the upstream out of use: call `on_retired` now, or when the last request in flight ends."""
        if self.busy:
            self.on_idle = self.retire
            return
        while self.on_retired:
            self.on_retired.pop()()


def authority(host: str, port: int) -> str:
    """Write `host:port`, with an IPv6 address in brackets (RFC 3986, section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
