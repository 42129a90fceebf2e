"""The metrics of `/lb/metrics`, in Prometheus' text format, with the names and units that it recommends."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds in seconds: from a local answer to the default response time-out."""


class Metrics:
    """All metrics of one load balancer, in a registry of their own: nothing is global."""

    def __init__(self) -> None:
        # When each series began is half of the page and of use to hardly anybody.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "lb_requests",
            "Requests answered, by replica (empty: none was reached) and status (499: the client went away).",
            ["replica", "status"],
            registry=self.registry,
        )
        self.in_flight = Gauge("lb_requests_in_flight", "Requests being answered.", registry=self.registry)
        self.latency = Histogram(
            "lb_request_duration_seconds",
            "Time from a request's head to the end of its answer.",
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.heartbeats_missed = Counter(
            "lb_heartbeats_missed", "Heartbeats that replicas have missed.", registry=self.registry
        )
        self.replacements = Counter(
            "lb_replacements", "New instances started in the place of dead ones.", registry=self.registry
        )

    def watch_replicas(self, census: Callable[[], Mapping[str, int]]) -> None:
        """Report how many replicas there are in each state.

        Args:
            census: Counts them, by state; called at each scrape.
        """
        self.registry.register(_Census(census))

    def forget(self, replica: str) -> None:
        """Drop the series of a replica that is gone: made-up names would pile up for ever."""
        self.requests.remove_by_labels({"replica": replica})

    def render(self) -> bytes:
        """Everything, in the text format (see `CONTENT_TYPE`)."""
        return generate_latest(self.registry)


class _Census(Collector):
    """Counts the replicas when asked, so that the numbers cannot go stale."""

    def __init__(self, census: Callable[[], Mapping[str, int]]) -> None:
        self._census = census

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("lb_replicas", "Replicas, by state.", labels=["state"])
        for state, count in self._census().items():
            family.add_metric([state], count)
        yield family
