"""The worker's side of leases: publishes the rotation from the control plane, and reports counts."""

import asyncio
import random
from dataclasses import dataclass

from loadbalancer.publication import Publication
from loadbalancer.routing.snapshot import snapshot_maker
from loadbalancer.routing.upstream import Upstream
from loadbalancer.settings import Settings
from loadbalancer.telemetry.metrics import Metrics
from loadbalancer.workers.messages import (
    SIGN_OF_LIFE,
    LeaseEnded,
    Member,
    MemberReport,
    Report,
    Rotation,
    Send,
)


@dataclass(slots=True)
class _Lease:
    """An upstream that the worker may use.

    Args:
        upstream: The upstream.
        in_flight: Its requests in flight at the last report.
        successes: Its successes at the last report.
        failures: The failures since the last report.
        refusals: The refusals since the last report.
    """

    upstream: Upstream
    in_flight: int = 0
    successes: int = 0
    failures: int = 0
    refusals: int = 0


class Follower:
    """Publishes a snapshot of each rotation that the control plane sends.

    Args:
        settings: The options, with the policy and the ring.
        metrics: The metrics of the worker's lane.
        send: Sends a notice to the control plane.
    """

    def __init__(self, settings: Settings, metrics: Metrics, send: Send) -> None:
        self._make = snapshot_maker(settings.policy, settings.ring, settings.load_factor, random.Random())
        self.publication = Publication(self._make(()), lambda: self._expects_upstream)
        """The snapshots for the lane."""
        self._metrics = metrics
        self._send = send
        self._leases: dict[int, _Lease] = {}
        self._in_rotation: list[int] = []
        self._reported_at = 0.0
        self._reported_in_flight = 0
        self._report_scheduled = False
        self._expects_upstream = False

    def follow(self, rotation: Rotation) -> None:
        """Publish a snapshot of another rotation.

        Args:
            rotation: The rotation from the control plane.
        """
        self._expects_upstream = rotation.expects_upstream
        in_rotation = [member.id for member in rotation.members]
        leaving = set(self._in_rotation) - set(in_rotation)
        for member in rotation.members:
            if member.id not in self._leases:
                self._leases[member.id] = self._begin_lease(member)
            self._leases[member.id].upstream.share = member.share
        if in_rotation != self._in_rotation:
            self._in_rotation = in_rotation
            self.publication.publish(self._make([self._leases[id].upstream for id in in_rotation]))
        for id in leaving:
            self._leases[id].upstream.retire()

    def report(self, now: float) -> None:
        """Send a report if counts have changed, or if a sign of life is due.

        Args:
            now: The time of the event loop.
        """
        members = [report for id, lease in self._leases.items() if (report := self._member_report(id, lease))]
        counts = self._metrics.take()
        in_flight = self._metrics.in_flight
        changed = members or counts.requests or in_flight != self._reported_in_flight
        if not changed and now - self._reported_at < SIGN_OF_LIFE:
            return
        self._reported_at, self._reported_in_flight = now, in_flight
        self._send(
            Report(
                in_flight=in_flight,
                requests=counts.requests,
                latency=counts.latency,
                seconds=counts.seconds,
                members=members,
            )
        )

    def _begin_lease(self, member: Member) -> _Lease:
        upstream = Upstream(member.hostname, member.number, member.host, member.port, member.weight)
        lease = _Lease(upstream)

        def count_failure(consecutive_failures: int) -> None:
            lease.failures += 1
            self._schedule_report()

        def count_refusal() -> None:
            lease.refusals += 1
            self._schedule_report()

        def end_lease() -> None:
            # The lease ends in the next turn of the loop, because the last request is counted in this turn.
            asyncio.get_running_loop().call_soon(self._end_lease, member.id)

        upstream.on_failure, upstream.on_refusal = count_failure, count_refusal
        upstream.on_retired.append(end_lease)
        return lease

    def _member_report(self, id: int, lease: _Lease) -> MemberReport | None:
        upstream = lease.upstream
        member = MemberReport(
            id=id,
            in_flight=upstream.in_flight,
            successes=upstream.successes - lease.successes,
            failures=lease.failures,
            consecutive_failures=upstream.consecutive_failures,
            refusals=lease.refusals,
        )
        same = upstream.in_flight == lease.in_flight
        if same and not (member.successes or member.failures or member.refusals):
            return None
        lease.in_flight, lease.successes = upstream.in_flight, upstream.successes
        lease.failures = lease.refusals = 0
        return member

    def _schedule_report(self) -> None:
        """Report in the next turn of the loop, so that several failures of one turn share a report."""
        if not self._report_scheduled:
            self._report_scheduled = True
            asyncio.get_running_loop().call_soon(self._report_now)

    def _report_now(self) -> None:
        self._report_scheduled = False
        self.report(asyncio.get_running_loop().time())

    def _end_lease(self, id: int) -> None:
        self._report_now()
        del self._leases[id]
        self._send(LeaseEnded(id=id))
