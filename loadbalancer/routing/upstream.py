"""An upstream: what routing and the data path know of one replica that is in rotation.

Its identity is frozen. Mutable are the counts of requests in flight and of answers, which the data path
changes and nobody else may touch; policies read the one, keepers the other. A replacement of
a dead replica is a new upstream under the old name and number, with a count of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Upstream:
    """One replica in rotation.

    Args:
        hostname: Its name in the fleet, as `/rep` lists it.
        number: Its number on the ring: 1, 2, 3 … in the order of joining.
        host: Address to connect to.
        port: Port to connect to.
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
    on_idle: Callable[[], None] | None = field(default=None, init=False, repr=False)
    """Called when the last request in flight has ended; the fleet sets it while it drains the replica."""

    def acquire(self) -> None:
        """Count one request more in flight. Every call is followed by exactly one `release`."""
        self.in_flight += 1

    def release(self) -> None:
        """Count one request less in flight."""
        self.in_flight -= 1
        if self.in_flight == 0 and self.on_idle is not None:
            self.on_idle()

    @property
    def address(self) -> str:
        """`host:port`, as people and `Host` headers write it."""
        return authority(self.host, self.port)


def authority(host: str, port: int) -> str:
    """Write `host:port`, with an IPv6 address in brackets (RFC 3986 §3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
