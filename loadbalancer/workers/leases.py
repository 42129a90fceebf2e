"""The upstreams that one worker may have requests to, and the counts that the worker has reported of them.

A lease begins when the control plane tells a worker of an upstream, and ends when the worker says that it
has no request and no connection to it. `Upstream.held` counts the leases, so an upstream that has left the
rotation is known to be idle for certain, although other counts arrive a moment late. No I/O, no clock.
"""

from dataclasses import dataclass
from itertools import count

from loadbalancer.routing.snapshot import SnapshotSource
from loadbalancer.routing.upstream import Upstream
from loadbalancer.telemetry.metrics import Counts, Metrics
from loadbalancer.workers.messages import Member, MemberReport, Report, Rotation


@dataclass(slots=True)
class _Lease:
    upstream: Upstream
    in_flight: int = 0


class Leases:
    """The control plane's record of one worker process.

    Args:
        source: Publishes the snapshots.
        metrics: Where the worker's counts are added up.
    """

    def __init__(self, source: SnapshotSource, metrics: Metrics) -> None:
        self._source = source
        self._metrics = metrics
        self._leases: dict[int, _Lease] = {}
        self._present: dict[Upstream, int] = {}
        self._ids = count(1)
        self._sent: Rotation | None = None
        self._in_flight = 0

    def rotation(self) -> Rotation | None:
        """The rotation to send, with a lease for each upstream in it; None if the worker knows it."""
        snapshot = self._source.snapshot
        for upstream in snapshot.upstreams:
            if upstream not in self._present:
                self._present[upstream] = id = next(self._ids)
                self._leases[id] = _Lease(upstream)
                upstream.leases += 1
        for upstream in self._present.keys() - set(snapshot.upstreams):
            del self._present[upstream]
        rotation = Rotation(
            expects_upstream=self._source.expects_upstream,
            members=[
                Member(
                    id=self._present[upstream],
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
        """Add up what the worker has counted.

        Raises:
            KeyError: The report speaks of a lease that does not exist.
        """
        self._metrics.add(Counts(report.requests, report.latency, report.seconds))
        self._metrics.in_flight += report.in_flight - self._in_flight
        self._in_flight = report.in_flight
        for member in report.members:
            self._take_member(member)

    def released(self, id: int) -> None:
        """The worker has ended a lease.

        Raises:
            KeyError: The lease does not exist.
        """
        lease = self._leases.pop(id)
        lease.upstream.end_lease(lease.in_flight)

    def end(self) -> None:
        """The worker process has ended, and every lease and request with it."""
        self._metrics.in_flight -= self._in_flight
        for lease in self._leases.values():
            lease.upstream.end_lease(lease.in_flight)
        self._leases.clear()
        self._present.clear()
        self._sent = None
        self._in_flight = 0

    def _take_member(self, member: MemberReport) -> None:
        lease = self._leases[member.id]
        upstream = lease.upstream
        upstream.add_in_flight(member.in_flight - lease.in_flight)
        lease.in_flight = member.in_flight
        if member.answered:
            upstream.successes += member.answered
            upstream.consecutive_failures = 0
        # Failures before an answer are over: only the latest ones, in a row, still count.
        for _ in range(min(member.failed, member.failing) if member.answered else member.failed):
            upstream.record_failure()
        for _ in range(member.refused):
            upstream.record_refusal()
