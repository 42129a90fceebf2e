"""The record of a run: the time and the status of each request, and the figures that follow from them."""

import math
import re
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PERCENTILES = (50.0, 75.0, 90.0, 99.0, 99.9)

NAME = re.compile(rb'Hello from Server: ([^"\s]+)')
"""Finds the name of the replica in an answer of the sample replica."""


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The percentile of some values by the nearest-rank method; NaN without values.

    Args:
        ordered: Values in ascending order.
        percent: Percentage from 0 to 100.
    """
    if not ordered:
        return math.nan
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


@dataclass
class Record:
    """All requests of a run in the order of their ends; the arrays have one item for each request.

    Args:
        number: Number of the request, in the order of the scheduled starts.
        began: Scheduled start, in seconds after the start of the run.
        seconds: Seconds from the scheduled start to the end of the answer.
        status: Status of the answer; 0: the request failed without an answer.
        replica: Index in `replicas` of the replica that answered; 0: unknown.
        replicas: Names of the replicas that answered; the first item stands for unknown ones.
        errors: Failed requests by kind of failure.
        took: Duration of the run in seconds.
        origin: Start of the run by `time.perf_counter`.
    """

    number: "array[int]" = field(default_factory=lambda: array("l"))
    began: "array[float]" = field(default_factory=lambda: array("d"))
    seconds: "array[float]" = field(default_factory=lambda: array("d"))
    status: "array[int]" = field(default_factory=lambda: array("h"))
    replica: "array[int]" = field(default_factory=lambda: array("h"))
    replicas: list[str] = field(default_factory=lambda: [""])
    errors: Counter[str] = field(default_factory=Counter)
    took: float = 0.0
    origin: float = 0.0

    def add(self, number: int, began: float, seconds: float, status: int, body: bytes) -> None:
        """Record the end of a request.

        Args:
            number: Number of the request.
            began: Scheduled start, in seconds after the start of the run.
            seconds: Seconds from the scheduled start to the end.
            status: Status of the answer; 0: there was none, and `body` names the error.
            body: Body of the answer.
        """
        self.number.append(number)
        self.began.append(began)
        self.seconds.append(seconds)
        self.status.append(status)
        self.replica.append(self._index(body) if status == 200 else 0)
        if status == 0:
            self.errors[body.decode()] += 1
        elif status >= 400:
            self.errors[f"status {status}"] += 1

    def _index(self, body: bytes) -> int:
        match = NAME.search(body)
        if match is None:
            return 0
        name = match[1].decode()
        if name not in self.replicas:
            self.replicas.append(name)
        return self.replicas.index(name)

    def by_replica(self) -> dict[str, int]:
        """Requests answered by each replica whose name is known."""
        counts = Counter(self.replica)
        return {name: counts[index] for index, name in sorted(enumerate(self.replicas)) if index}

    def latencies(self) -> list[float]:
        """Latencies of the requests with a status below 400, in seconds and ascending."""
        return sorted(s for s, status in zip(self.seconds, self.status, strict=True) if 0 < status < 400)

    def over_time(self, step: float) -> list[dict[str, float]]:
        """Count answers and failures in each step of time, by the ends of the requests.

        Args:
            step: Length of a step in seconds.
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
        """The figures of the run, of values that JSON can hold; times are in seconds."""
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
