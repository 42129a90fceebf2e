"""Intervals and limits of the fleet, and its pauses, which become longer after each failure."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Intervals and limits, in seconds unless stated otherwise.

    Args:
        interval: Time between two heartbeats.
        max_fail_count: Number of missed heartbeats in a row after which a replica is dead.
        start: Limit for a start, and for the first good heartbeat after it.
        drain: Limit for the requests in flight of a replica that leaves.
        stop: Time between SIGTERM and SIGKILL.
        backoff: Pause before the second attempt to replace an instance. It doubles with each attempt.
        backoff_max: Longest pause between two attempts.
        stable: After an instance was up for this time, its replacement starts without a pause.
        eject_after: Number of failed requests in a row after which a replica is ejected; 0: never.
        eject: Duration of the first ejection. It doubles with each further ejection.
        eject_max: Longest duration of an ejection.
        slow_start: Time in which the share of a recovered replica grows to 1; 0: at once.
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
    """Exponential backoff with equal jitter: half of the pause is fixed, half is random.

    There is no pause after the first failure. See M. Brooker, "Exponential Backoff And Jitter", AWS
    Architecture Blog, 2015.

    Args:
        timing: Has the first and the longest pause.
        rng: Source of jitter.
    """

    def __init__(self, timing: Timing, rng: random.Random) -> None:
        self._timing = timing
        self._rng = rng
        self._failures = 0

    def reset(self) -> None:
        """Begin again without a pause, because the instance was up for a stable time."""
        self._failures = 0

    def next(self) -> float:
        """Count one more failure, and return the pause after it in seconds."""
        exponent = min(self._failures - 1, 32)
        self._failures += 1
        if exponent < 0:
            return 0.0
        ceiling = min(self._timing.backoff * 2.0**exponent, self._timing.backoff_max)
        return ceiling * (0.5 + 0.5 * self._rng.random())
