"""A worker's picture of the fleet, as the control plane has told it, and what it tells in return."""

import asyncio
import random
from dataclasses import dataclass

from loadbalancer.fleet.publication import Publication
from loadbalancer.routing.snapshot import snapshot_maker
from loadbalancer.routing.upstream import Upstream
from loadbalancer.settings import Settings
from loadbalancer.telemetry.metrics import Metrics
from loadbalancer.workers.messages import Account, Member, Released, Report, Rotation, Tell

SIGN_OF_LIFE = 1.0
"""Seconds after which a report goes out even if there is no news."""


@dataclass(slots=True)
class _Stay:
    """A member's stay in rotation: what was reported of it, and what has failed since."""

    upstream: Upstream
    in_flight: int = 0
    answered: int = 0
    failed: int = 0
    refused: int = 0


class Follower:
    """Publishes snapshots of what the control plane says.

    Args:
        settings: Policy and ring.
        metrics: What the lane counts.
        tell: Sends a message to the control plane.
    """

    def __init__(self, settings: Settings, metrics: Metrics, tell: Tell) -> None:
        self._make = snapshot_maker(settings.policy, settings.ring, settings.load_factor, random.Random())
        self.publication = Publication(self._make(()), lambda: self._hopeful)
        """What the lane reads."""
        self._metrics = metrics
        self._tell = tell
        self._stays: dict[int, _Stay] = {}
        self._present: list[int] = []
        self._reported_at = 0.0
        self._reported_in_flight = 0
        self._soon = False
        self._hopeful = False

    def follow(self, rotation: Rotation) -> None:
        """Take over who is in rotation.

        Args:
            rotation: What the control plane says.
        """
        self._hopeful = rotation.hopeful
        leaving = set(self._present) - {member.id for member in rotation.members}
        present = [member.id for member in rotation.members]
        for member in rotation.members:
            if member.id not in self._stays:
                self._stays[member.id] = self._arrival(member)
            self._stays[member.id].upstream.share = member.share
        if present != self._present:
            self._present = present
            self.publication.publish(self._make([self._stays[id].upstream for id in present]))
        for id in leaving:
            self._stays[id].upstream.retire()

    def report(self, now: float) -> None:
        """Tell what there is to tell.

        Args:
            now: The loop's time.
        """
        accounts = [account for id, stay in self._stays.items() if (account := self._account(id, stay))]
        counts = self._metrics.take()
        in_flight = self._metrics.in_flight
        news = accounts or counts.requests or in_flight != self._reported_in_flight
        if not news and now - self._reported_at < SIGN_OF_LIFE:
            return
        self._reported_at, self._reported_in_flight = now, in_flight
        self._tell(
            Report(
                in_flight=in_flight,
                requests=counts.requests,
                latency=counts.latency,
                seconds=counts.seconds,
                accounts=accounts,
            )
        )

    def _arrival(self, member: Member) -> _Stay:
        upstream = Upstream(member.hostname, member.number, member.host, member.port, member.weight)
        stay = _Stay(upstream)

        def failed(in_a_row: int) -> None:
            stay.failed += 1
            self._report_soon()

        def refused() -> None:
            stay.refused += 1
            self._report_soon()

        upstream.on_failed, upstream.on_refused = failed, refused

        def retired() -> None:
            # Soon, not at once: what ended last has yet to be counted.
            asyncio.get_running_loop().call_soon(self._release, member.id)

        upstream.on_retired.append(retired)
        return stay

    def _account(self, id: int, stay: _Stay) -> Account | None:
        upstream = stay.upstream
        account = Account(
            id=id,
            in_flight=upstream.in_flight,
            answered=upstream.answered - stay.answered,
            failed=stay.failed,
            failing=upstream.failures,
            refused=stay.refused,
        )
        same = upstream.in_flight == stay.in_flight
        if same and not (account.answered or account.failed or account.refused):
            return None
        stay.in_flight, stay.answered = upstream.in_flight, upstream.answered
        stay.failed = stay.refused = 0
        return account

    def _report_soon(self) -> None:
        """What is wrong with a replica must not wait; many of them may fail in one moment."""
        if not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._report_now)

    def _report_now(self) -> None:
        self._soon = False
        self.report(asyncio.get_running_loop().time())

    def _release(self, id: int) -> None:
        self._report_now()
        del self._stays[id]
        self._tell(Released(id=id))
