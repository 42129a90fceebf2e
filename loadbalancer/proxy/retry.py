"""Whether a request that has failed may go to another replica, and how many may.

Only a request that cannot be done twice by that: nothing of it had been sent, or its method is
idempotent (RFC 9110, section 9.2.2) and its body can be sent again. A budget keeps retries from making
an overload worse: a dying service must not be finished off by its own load balancer.
"""

import time
from collections import deque
from typing import Protocol

from loadbalancer.errors import UpstreamClosedError, UpstreamError, UpstreamRefusedError

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""RFC 9110, section 9.2.2. A method that is not known is not taken for one."""


def may_repeat(method: str, error: UpstreamError, *, body_at_hand: bool) -> bool:
    """Whether a failed request may be sent once more.

    Args:
        method: Its method.
        error: How it failed.
        body_at_hand: Whether all that was sent of its body can be sent again.
    """
    if not body_at_hand:
        return False
    if isinstance(error, UpstreamRefusedError):
        return True
    return isinstance(error, UpstreamClosedError) and method in IDEMPOTENT


class Clock(Protocol):
    """Knows the time, well enough for the purpose."""

    @property
    def now(self) -> float:
        """In seconds, from wherever."""


class Monotonic:
    """The time as the system has it."""

    @property
    def now(self) -> float:
        """In seconds."""
        return time.monotonic()


class RetryBudget:
    """Allows retries up to a share of the recent requests, and always some.

    Args:
        clock: Knows the time.
        share: Retries for each request of the last `window` seconds.
        always: Retries a second that are allowed however few requests there are.
        window: Seconds that count as recent.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        share: float = 0.2,
        always: float = 10.0,
        window: float = 10.0,
    ) -> None:
        self._clock = clock
        self._share = share
        self._always = always * window
        self._window = window
        self._requests = 0
        """Requests since the last look at the clock; to count one must cost next to nothing."""
        self._looked = clock.now
        # For each look: when it was, requests before it, retries at it.
        self._looks: deque[list[float]] = deque()

    def request(self) -> None:
        """Count a request."""
        self._requests += 1

    def withdraw(self) -> bool:
        """Take one retry out of the budget; say whether there was one left."""
        now = self._look()
        requests = sum(look[1] for look in self._looks)
        retries = sum(look[2] for look in self._looks)
        if retries >= max(self._always, self._share * requests):
            return False
        now[2] += 1
        return True

    def _look(self) -> list[float]:
        """Note the requests since the last look: of a time longer than the window, the share within it."""
        now = self._clock.now
        looks, window = self._looks, self._window
        while looks and now - looks[0][0] >= window:
            looks.popleft()
        since = now - self._looked
        requests = self._requests * min(1.0, window / since) if since > 0 else self._requests
        self._requests, self._looked = 0, now
        if looks and now - looks[-1][0] < 1.0:
            looks[-1][1] += requests
        else:
            looks.append([now, requests, 0])
        return looks[-1]
