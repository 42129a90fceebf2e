"""A worker's picture of the fleet, as the control plane describes it, and the worker's reports in return."""

import asyncio
import random
from dataclasses import dataclass

from loadbalancer.fleet.publication import Publication
from loadbalancer.routing.snapshot import snapshot_maker
from loadbalancer.routing.upstream import Upstream
from loadbalancer.settings import Settings
from loadbalancer.telemetry.metrics import Metrics
from loadbalancer.workers.messages import SIGN_OF_LIFE, Member, MemberReport, Released, Report, Rotation, Send


@dataclass(slots=True)
class _Lease:
    """An upstream that the worker may use: the counts at the last report, and the failures since."""

    upstream: Upstream
    in_flight: int = 0
    answered: int = 0
    failed: int = 0
    refused: int = 0


class Follower:
    """Publishes snapshots of the rotation that the control plane sends.

    Args:
        settings: Policy and ring.
        metrics: Where the lane counts.
        send: Sends a notice to the control plane.
    """

    def __init__(self, settings: Settings, metrics: Metrics, send: Send) -> None:
        self._make = snapshot_maker(settings.policy, settings.ring, settings.load_factor, random.Random())
        self.publication = Publication(self._make(()), lambda: self._expects_upstream)
        """The snapshots that the lane reads."""
        self._metrics = metrics
        self._send = send
        self._leases: dict[int, _Lease] = {}
        self._present: list[int] = []
        self._reported_at = 0.0
        self._reported_in_flight = 0
        self._soon = False
        self._expects_upstream = False

    def follow(self, rotation: Rotation) -> None:
        """Use another rotation.

        Args:
            rotation: As the control plane has sent it.
        """
        self._expects_upstream = rotation.expects_upstream
        leaving = set(self._present) - {member.id for member in rotation.members}
        present = [member.id for member in rotation.members]
        for member in rotation.members:
            if member.id not in self._leases:
                self._leases[member.id] = self._begin_lease(member)
            self._leases[member.id].upstream.share = member.share
        if present != self._present:
            self._present = present
            self.publication.publish(self._make([self._leases[id].upstream for id in present]))
        for id in leaving:
            self._leases[id].upstream.retire()

    def report(self, now: float) -> None:
        """Send a report, if there is news or a sign of life is due.

        Args:
            now: The loop's time.
        """
        members = [report for id, lease in self._leases.items() if (report := self._member_report(id, lease))]
        counts = self._metrics.take()
        in_flight = self._metrics.in_flight
        news = members or counts.requests or in_flight != self._reported_in_flight
        if not news and now - self._reported_at < SIGN_OF_LIFE:
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

        def failed(in_a_row: int) -> None:
            lease.failed += 1
            self._report_soon()

        def refused() -> None:
            lease.refused += 1
            self._report_soon()

        upstream.on_failure, upstream.on_refusal = failed, refused

        def retired() -> None:
            # In the next turn of the loop: the last request is yet to be counted.
            asyncio.get_running_loop().call_soon(self._release, member.id)

        upstream.on_retired.append(retired)
        return lease

    def _member_report(self, id: int, lease: _Lease) -> MemberReport | None:
        upstream = lease.upstream
        member = MemberReport(
            id=id,
            in_flight=upstream.in_flight,
            answered=upstream.successes - lease.answered,
            failed=lease.failed,
            failing=upstream.consecutive_failures,
            refused=lease.refused,
        )
        same = upstream.in_flight == lease.in_flight
        if same and not (member.answered or member.failed or member.refused):
            return None
        lease.in_flight, lease.answered = upstream.in_flight, upstream.successes
        lease.failed = lease.refused = 0
        return member

    def _report_soon(self) -> None:
        """Report a failure in this turn of the loop; many failures of one turn share a report."""
        if not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._report_now)

    def _report_now(self) -> None:
        self._soon = False
        self.report(asyncio.get_running_loop().time())

    def _release(self, id: int) -> None:
        self._report_now()
        del self._leases[id]
        self._send(Released(id=id))
