"""The health recorder: records whether one replica in rotation is alive, and whether it answers well.

Heartbeats say whether it is alive; a connection that it refuses counts as a missed heartbeat. Its answers say
whether it answers well: a replica that fails several requests in a row is ejected, which takes it out of
rotation for a limited time although it is alive (passive ejection, like the outlier detection of Envoy).
"""

import asyncio
from typing import Protocol

from loadbalancer.fleet.backends.base import Instance
from loadbalancer.fleet.heartbeat import Heartbeat, Miss, Ticker, Unsent
from loadbalancer.fleet.replica import Replica
from loadbalancer.fleet.roster import Roster
from loadbalancer.fleet.timing import Timing
from loadbalancer.routing.upstream import Upstream
from loadbalancer.tasks import with_helpers

SLOW_START_STEPS = 20
"""Steps in which the share of a recovered replica grows to 1."""

EJECTION_RESETS_AFTER = 10
"""After staying in rotation for this multiple of `eject_time`, the ejection time resets."""


class Probe(Protocol):
    """Sends heartbeats; see `heartbeat.Prober`."""

    async def probe(self, host: str, port: int) -> Heartbeat:
        """Send one heartbeat, and return its outcome."""


class HealthRecorder:
    """Records the health of one instance while its replica is up.

    Args:
        replica: The replica, which is up.
        instance: Its current instance.
        probe: Sends heartbeats.
        roster: The shared state of the fleet.
        timing: Intervals and limits.
    """

    def __init__(
        self, replica: Replica, instance: Instance, probe: Probe, roster: Roster, timing: Timing
    ) -> None:
        if replica.upstream is None:
            raise RuntimeError(f"{replica.hostname} is not in rotation")
        self._replica = replica
        self._instance = instance
        self._upstream: Upstream = replica.upstream
        self._probe = probe
        self._roster = roster
        self._timing = timing
        self._refused = asyncio.Event()
        self._failing = asyncio.Event()
        self._upstream.on_refusal = self._refused.set
        self._upstream.on_failure = self._request_failed

    async def until_dead(self) -> str:
        """Return when the replica has missed too many heartbeats, with the reason."""
        return await with_helpers(
            self._until_heartbeats_missed(), self._start_slowly(), self._eject_while_failing()
        )

    async def _until_heartbeats_missed(self) -> str:
        ticker = Ticker(self._timing.interval)
        while True:
            self._refused.clear()
            ticked = await ticker.tick(self._refused)
            outcome = await self._heartbeat() if ticked else Miss("it refused a connection")
            if isinstance(outcome, Unsent):
                continue  # It says nothing about the replica.
            missed = await self._roster.record_heartbeat(self._replica, outcome.reason if outcome else None)
            if outcome and missed >= self._timing.max_fail_count:
                return f"missed {missed} heartbeats in a row: {outcome.reason}"

    async def _heartbeat(self) -> Heartbeat:
        """Send a heartbeat. One that times out is good if the replica has answered requests meanwhile.

        Under a heavy load a heartbeat waits in the same queues as the requests. A replica that keeps
        answering requests is busy and alive. Replacing it would only move its load to the others.
        """
        upstream = self._upstream
        successes = upstream.successes
        outcome = await self._probe.probe(self._instance.host, self._instance.port)
        if (
            isinstance(outcome, Miss)
            and outcome.timed_out
            and upstream.in_flight
            and upstream.successes > successes
        ):
            return None
        return outcome

    # -- ejection ------------------------------------------------------------------------------------

    def _request_failed(self, in_a_row: int) -> None:
        if self._timing.eject_after and in_a_row >= self._timing.eject_after:
            self._failing.set()

    async def _eject_while_failing(self) -> None:
        loop = asyncio.get_running_loop()
        # A recorder that ended by a fault may have left the replica ejected.
        await self._roster.readmit(self._replica)
        seconds, readmitted = self._timing.eject, loop.time()
        while True:
            await self._failing.wait()
            if loop.time() - readmitted >= EJECTION_RESETS_AFTER * self._timing.eject:
                seconds = self._timing.eject
            count = self._upstream.consecutive_failures
            reason = f"ejected for {seconds:g} s after {count} failed requests in a row"
            if await self._roster.eject(self._replica, reason):
                await asyncio.sleep(seconds)
                seconds = min(2 * seconds, self._timing.eject_max)
                readmitted = loop.time()
                await self._roster.readmit(self._replica)
                await self._grow_share()
            self._upstream.consecutive_failures = 0
            self._failing.clear()

    # -- slow start ----------------------------------------------------------------------------------

    async def _start_slowly(self) -> None:
        """Let the share of a replacement grow. The first instance of a replica has its full share at once."""
        if self._replica.restarts:
            await self._grow_share()

    async def _grow_share(self) -> None:
        if not self._timing.slow_start:
            return
        try:
            for step in range(1, SLOW_START_STEPS):
                self._upstream.share = step / SLOW_START_STEPS
                await asyncio.sleep(self._timing.slow_start / SLOW_START_STEPS)
        finally:
            self._upstream.share = 1.0
