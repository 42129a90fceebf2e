"""The metrics of `/lb/metrics`, in Prometheus' text format, with the recommended names and units.

Requests are counted in plain integers, which cost least. A scrape converts them to Prometheus' format.
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
"""Upper bounds of the buckets in seconds, up to the default of `--response-timeout`."""


@dataclass(frozen=True)
class Counts:
    """Counts of requests that have ended.

    Args:
        requests: Replica, status, and number of requests.
        latency: The number of requests in each bucket. The last bucket has no upper bound.
        seconds: The sum of the durations.
    """

    requests: list[tuple[str, int, int]]
    latency: list[int]
    seconds: float


class Metrics(Collector):
    """All metrics of one load balancer, in their own registry."""

    def __init__(self) -> None:
        # The creation times of the series would be half of the page.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.in_flight = 0
        """Requests in flight; the lanes change it."""
        self._requests: dict[tuple[str, int], int] = {}
        self._latency = [0] * (len(LATENCY_BUCKETS) + 1)
        self._seconds = 0.0
        self._count_replicas: Callable[[], Mapping[str, int]] = dict
        self.heartbeats_missed = Counter("lb_heartbeats_missed", "Missed heartbeats.", registry=self.registry)
        self.replacements = Counter(
            "lb_replacements", "Instances started to replace dead ones.", registry=self.registry
        )
        self.registry.register(self)

    def count(self, replica: str, status: int, seconds: float) -> None:
        """Count a request that has ended.

        Args:
            replica: The hostname of the last replica that the request was sent to; empty: none.
            status: The status of the answer, or 499 if the client closed the connection.
            seconds: The time from the head of the request to the end of the answer.
        """
        try:
            self._requests[replica, status] += 1
        except KeyError:
            self._requests[replica, status] = 1
        self._latency[bisect_left(LATENCY_BUCKETS, seconds)] += 1
        self._seconds += seconds

    def take(self) -> "Counts":
        """Return the counts and reset them to zero, so that another process can add them up."""
        counts = Counts(
            [(*series, count) for series, count in self._requests.items()], self._latency, self._seconds
        )
        self._requests = {}
        self._latency = [0] * len(self._latency)
        self._seconds = 0.0
        return counts

    def add(self, counts: "Counts") -> None:
        """Add the counts of another process."""
        for replica, status, count in counts.requests:
            series = (replica, status)
            self._requests[series] = self._requests.get(series, 0) + count
        self._latency = [ours + theirs for ours, theirs in zip(self._latency, counts.latency, strict=True)]
        self._seconds += counts.seconds

    def watch_replicas(self, count: Callable[[], Mapping[str, int]]) -> None:
        """Report the number of replicas in each state.

        Args:
            count: Counts the replicas by state. Each scrape calls it.
        """
        self._count_replicas = count

    def forget(self, replica: str) -> None:
        """Remove the series of a replica that is gone, so that generated hostnames do not accumulate."""
        for series in [series for series in self._requests if series[0] == replica]:
            del self._requests[series]

    def render(self) -> bytes:
        """Render all metrics in the text format (see `CONTENT_TYPE`)."""
        return generate_latest(self.registry)

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics for Prometheus' registry."""
        requests = CounterMetricFamily(
            "lb_requests",
            "Ended requests by replica (empty: none) and status (499: the client closed the connection).",
            labels=["replica", "status"],
        )
        for (replica, status), count in self._requests.items():
            requests.add_metric([replica, str(status)], count)
        yield requests
        yield GaugeMetricFamily("lb_requests_in_flight", "Requests in flight.", self.in_flight)
        bounds = [*map(str, LATENCY_BUCKETS), "+Inf"]
        yield HistogramMetricFamily(
            "lb_request_duration_seconds",
            "Time from the head of a request to the end of its answer.",
            buckets=list(zip(bounds, accumulate(self._latency), strict=True)),
            sum_value=self._seconds,
        )
        replicas = GaugeMetricFamily("lb_replicas", "Replicas, by state.", labels=["state"])
        for state, count in self._count_replicas().items():
            replicas.add_metric([state], count)
        yield replicas
