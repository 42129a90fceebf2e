"""How long the fleet waits for what, and how it waits longer after each failure."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a keeper waits, in seconds, and how often.

    Args:
        interval: Between two heartbeats.
        max_fail_count: Misses in a row that mean dead.
        start: Until the first good heartbeat of a new instance.
        drain: For requests in flight when a replica leaves.
        stop: Between SIGTERM and SIGKILL.
        backoff: Before the second attempt to replace an instance that did not last; doubles from there.
        backoff_max: At most between two attempts.
        stable: An instance that was up for this long has lasted: the next death is answered at once.
        eject_after: Failures in a row on the data path that take a replica out for a while; 0: never.
        eject: How long the first time; doubles with each further time, up to `eject_max`.
        eject_max: At most.
        slow_start: How long a recovered replica takes to come to its full share; 0: at once.
    """

    interval: float = 1.0
    max_fail_count: int = 3
    start: float = 30.0
    drain: float = 10.0
    stop: float = 5.0
    backoff: float = 0.5
    backoff_max: float = 30.0
    stable: float = 10.0
    eject_after: int = 5
    eject: float = 5.0
    eject_max: float = 300.0
    slow_start: float = 0.0


class Backoff:
    """Exponential backoff with equal jitter: half of the delay is fixed, half is random.

    The first failure after a stable time is answered at once. See M. Brooker, "Exponential Backoff And
    Jitter", AWS Architecture Blog, 2015.
    """

    def __init__(self, timing: Timing, rng: random.Random) -> None:
        self._timing = timing
        self._rng = rng
        self._failures = 0

    def reset(self) -> None:
        """The instance has lasted."""
        self._failures = 0

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        exponent = min(self._failures - 1, 32)
        self._failures += 1
        if exponent < 0:
            return 0.0
        ceiling = min(self._timing.backoff * 2.0**exponent, self._timing.backoff_max)
        return ceiling * (0.5 + 0.5 * self._rng.random())
