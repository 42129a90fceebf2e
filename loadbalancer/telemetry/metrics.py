"""The metrics of `/lb/metrics`, in Prometheus' text format, with the names and units that it recommends.

What is counted for each request is counted in plain integers, and put into Prometheus' form only when
asked for: a request must not pay for what is read every few seconds.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds in seconds: from a local answer to the default response time-out."""


@dataclass(frozen=True)
class Counts:
    """Requests that have ended.

    Args:
        requests: Replica, status and how many.
        latency: How many in each bucket, the last of which has no upper bound.
        seconds: That they took together.
    """

    requests: list[tuple[str, int, int]]
    latency: list[int]
    seconds: float


class Metrics(Collector):
    """All metrics of one load balancer, in a registry of their own: nothing is global."""

    def __init__(self) -> None:
        # When each series began is half of the page and of use to hardly anybody.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.in_flight = 0
        """Requests being answered; the lanes count it up and down."""
        self._requests: dict[tuple[str, int], int] = {}
        self._latency = [0] * (len(LATENCY_BUCKETS) + 1)
        self._seconds = 0.0
        self._census: Callable[[], Mapping[str, int]] = dict
        self.heartbeats_missed = Counter(
            "lb_heartbeats_missed", "Heartbeats that replicas have missed.", registry=self.registry
        )
        self.replacements = Counter(
            "lb_replacements", "New instances started in the place of dead ones.", registry=self.registry
        )
        self.registry.register(self)

    def count(self, replica: str, status: int, seconds: float) -> None:
        """Count a request that has ended.

        Args:
            replica: Who had it last; empty: nobody was reached.
            status: Its answer's, or 499 when the client went away.
            seconds: From its head to the end of its answer.
        """
        try:
            self._requests[replica, status] += 1
        except KeyError:
            self._requests[replica, status] = 1
        self._latency[bisect_left(LATENCY_BUCKETS, seconds)] += 1
        self._seconds += seconds

    def take(self) -> "Counts":
        """What was counted since the last time, which begins anew: for whoever adds it up elsewhere."""
        counts = Counts(
            [(*series, count) for series, count in self._requests.items()], self._latency, self._seconds
        )
        self._requests = {}
        self._latency = [0] * len(self._latency)
        self._seconds = 0.0
        return counts

    def add(self, counts: "Counts") -> None:
        """Add what was counted elsewhere."""
        for replica, status, count in counts.requests:
            series = (replica, status)
            self._requests[series] = self._requests.get(series, 0) + count
        self._latency = [ours + theirs for ours, theirs in zip(self._latency, counts.latency, strict=True)]
        self._seconds += counts.seconds

    def watch_replicas(self, census: Callable[[], Mapping[str, int]]) -> None:
        """Report how many replicas there are in each state.

        Args:
            census: Counts them, by state; called at each scrape.
        """
        self._census = census

    def forget(self, replica: str) -> None:
        """Drop the series of a replica that is gone: made-up names would pile up for ever."""
        for series in [series for series in self._requests if series[0] == replica]:
            del self._requests[series]

    def render(self) -> bytes:
        """Everything, in the text format (see `CONTENT_TYPE`)."""
        return generate_latest(self.registry)

    def collect(self) -> Iterable[Metric]:
        """What Prometheus' registry asks for."""
        requests = CounterMetricFamily(
            "lb_requests",
            "Requests answered, by replica (empty: none was reached) and status (499: the client went away).",
            labels=["replica", "status"],
        )
        for (replica, status), count in self._requests.items():
            requests.add_metric([replica, str(status)], count)
        yield requests
        yield GaugeMetricFamily("lb_requests_in_flight", "Requests being answered.", self.in_flight)
        bounds = [*map(str, LATENCY_BUCKETS), "+Inf"]
        yield HistogramMetricFamily(
            "lb_request_duration_seconds",
            "Time from a request's head to the end of its answer.",
            buckets=list(zip(bounds, accumulate(self._latency), strict=True)),
            sum_value=self._seconds,
        )
        replicas = GaugeMetricFamily("lb_replicas", "Replicas, by state.", labels=["state"])
        for state, count in self._census().items():
            replicas.add_metric([state], count)
        yield replicas
