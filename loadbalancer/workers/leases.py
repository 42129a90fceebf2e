"""The control plane's side of leases: the upstreams that a worker may use, and the counts that it reports.

A lease of an upstream begins when the control plane sends the upstream to a worker. It ends when the worker
reports that it has no request and no connection to the upstream. `Upstream.leases` counts the leases. So the
control plane knows for certain when an upstream that has left the rotation is idle, although reports arrive
late. This module does no I/O and reads no clock.
"""

from dataclasses import dataclass
from itertools import count

from loadbalancer.routing.snapshot import SnapshotSource
from loadbalancer.routing.upstream import Upstream
from loadbalancer.telemetry.metrics import Counts, Metrics
from loadbalancer.workers.messages import Member, MemberReport, Report, Rotation


@dataclass(slots=True)
class _Lease:
    """The lease of an upstream, with the requests in flight that the worker has reported last."""

    upstream: Upstream
    in_flight: int = 0


class Leases:
    """The leases of one worker process.

    Args:
        source: The publisher of snapshots.
        metrics: The metrics to which the worker's counts are added.
    """

    def __init__(self, source: SnapshotSource, metrics: Metrics) -> None:
        self._source = source
        self._metrics = metrics
        self._leases: dict[int, _Lease] = {}
        self._in_rotation: dict[Upstream, int] = {}
        self._ids = count(1)
        self._sent: Rotation | None = None
        self._in_flight = 0

    def rotation(self) -> Rotation | None:
        """Begin a lease of each new upstream; return the rotation, or None if it has not changed."""
        snapshot = self._source.snapshot
        for upstream in snapshot.upstreams:
            if upstream not in self._in_rotation:
                self._in_rotation[upstream] = id = next(self._ids)
                self._leases[id] = _Lease(upstream)
                upstream.leases += 1
        for upstream in self._in_rotation.keys() - set(snapshot.upstreams):
            del self._in_rotation[upstream]
        rotation = Rotation(
            expects_upstream=self._source.expects_upstream,
            members=[
                Member(
                    id=self._in_rotation[upstream],
                    hostname=upstream.hostname,
                    number=upstream.number,
                    host=upstream.host,
                    port=upstream.port,
                    weight=upstream.weight,
                    share=upstream.share,
                )
                for upstream in snapshot.upstreams
            ],
        )
        if rotation == self._sent:
            return None
        self._sent = rotation
        return rotation

    def take(self, report: Report) -> None:
        """Add the counts of a report.

        Raises:
            KeyError: The report names a lease that does not exist.
        """
        self._metrics.add(Counts(report.requests, report.latency, report.seconds))
        self._metrics.in_flight += report.in_flight - self._in_flight
        self._in_flight = report.in_flight
        for member in report.members:
            self._take_member(member)

    def end_one(self, id: int) -> None:
        """End the lease that the worker has ended.

        Raises:
            KeyError: The lease does not exist.
        """
        lease = self._leases.pop(id)
        lease.upstream.end_lease(lease.in_flight)

    def end_all(self) -> None:
        """End all leases, because the worker process has ended and its requests with it."""
        self._metrics.in_flight -= self._in_flight
        for lease in self._leases.values():
            lease.upstream.end_lease(lease.in_flight)
        self._leases.clear()
        self._in_rotation.clear()
        self._sent = None
        self._in_flight = 0

    def _take_member(self, member: MemberReport) -> None:
        lease = self._leases[member.id]
        upstream = lease.upstream
        upstream.add_in_flight(member.in_flight - lease.in_flight)
        lease.in_flight = member.in_flight
        failures = member.failures
        if member.successes:
            upstream.successes += member.successes
            upstream.consecutive_failures = 0
            # A success ends a series of failures, so only the failures after the last success count.
            failures = min(failures, member.consecutive_failures)
        for _ in range(failures):
            upstream.record_failure()
        for _ in range(member.refusals):
            upstream.record_refusal()
