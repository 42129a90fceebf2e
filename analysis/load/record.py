"""What was measured, request by request, and what it comes to."""

import math
import re
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PERCENTILES = (50.0, 75.0, 90.0, 99.0, 99.9)

WHO = re.compile(rb'Hello from Server: ([^"\s]+)')
"""How the sample replica says who it is."""


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The least value that at least so many percent do not exceed (nearest rank); NaN if there is none.

    Args:
        ordered: Values, ascending.
        percent: From 0 to 100.
    """
    if not ordered:
        return math.nan
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


@dataclass
class Record:
    """Every request of a run, in the order in which they ended.

    Args:
        number: Of each request, in the order in which they were meant to begin.
        began: Seconds from the beginning of the run at which it was meant to begin.
        seconds: From then to the end of its answer.
        status: Of its answer; 0: none came.
        who: Index in `replicas` of who has answered; 0: unknown.
    """

    number: "array[int]" = field(default_factory=lambda: array("l"))
    began: "array[float]" = field(default_factory=lambda: array("d"))
    seconds: "array[float]" = field(default_factory=lambda: array("d"))
    status: "array[int]" = field(default_factory=lambda: array("h"))
    who: "array[int]" = field(default_factory=lambda: array("h"))
    replicas: list[str] = field(default_factory=lambda: [""])
    errors: Counter[str] = field(default_factory=Counter)
    took: float = 0.0
    """Seconds that the run has taken."""
    origin: float = 0.0
    """`time.perf_counter` at its beginning."""

    def add(self, number: int, began: float, seconds: float, status: int, body: bytes) -> None:
        """Note a request's end.

        Args:
            number: Of the request.
            began: When it was meant to begin.
            seconds: How long it took.
            status: Of the answer; 0: `body` says what went wrong.
            body: Of the answer.
        """
        self.number.append(number)
        self.began.append(began)
        self.seconds.append(seconds)
        self.status.append(status)
        self.who.append(self._index(body) if status == 200 else 0)
        if status == 0:
            self.errors[body.decode()] += 1
        elif status >= 400:
            self.errors[f"status {status}"] += 1

    def _index(self, body: bytes) -> int:
        match = WHO.search(body)
        if match is None:
            return 0
        name = match[1].decode()
        if name not in self.replicas:
            self.replicas.append(name)
        return self.replicas.index(name)

    def by_replica(self) -> dict[str, int]:
        """Requests answered by each replica that has said its name."""
        counts = Counter(self.who)
        return {name: counts[index] for index, name in sorted(enumerate(self.replicas)) if index}

    def latencies(self) -> list[float]:
        """Seconds of the requests that were answered below 400, ascending."""
        return sorted(s for s, status in zip(self.seconds, self.status, strict=True) if 0 < status < 400)

    def over_time(self, step: float) -> list[dict[str, float]]:
        """Answers and failures in each step of time, by when they ended.

        Args:
            step: Seconds.
        """
        edges = [step * (n + 1) for n in range(math.ceil(self.took / step))]
        buckets = [{"at": edge - step, "answered": 0.0, "failed": 0.0, "slowest": 0.0} for edge in edges]
        for began, seconds, status in zip(self.began, self.seconds, self.status, strict=True):
            place = bisect_left(edges, began + seconds)
            if place < len(buckets):
                bucket = buckets[place]
                bucket["answered" if 0 < status < 400 else "failed"] += 1
                bucket["slowest"] = max(bucket["slowest"], seconds)
        return buckets

    def summary(self) -> dict[str, Any]:
        """The figures of the whole, as JSON can hold them; times in seconds."""
        ordered = self.latencies()
        return {
            "requests": len(self.seconds),
            "seconds": self.took,
            "rate": len(self.seconds) / self.took if self.took else math.nan,
            "failed": sum(self.errors.values()),
            "errors": dict(self.errors),
            "statuses": {
                str(status): count for status, count in sorted(Counter(self.status).items()) if status
            },
            "mean": sum(ordered) / len(ordered) if ordered else None,
            "percentiles": {f"{p:g}": percentile(ordered, p) if ordered else None for p in PERCENTILES},
            "max": ordered[-1] if ordered else None,
            "replicas": self.by_replica(),
        }
