"""Watching one replica in rotation: is it alive, and is it any good?

Alive is what heartbeats say, and connections that it refuses count as missed ones. Any good is what the
answers say: one that fails request after request is taken out for a while, though it lives (passive
ejection, as Envoy's outlier detection does it).
"""

import asyncio
from typing import Protocol

from loadbalancer.fleet.backends.base import Instance
from loadbalancer.fleet.heartbeat import Miss, Ticker
from loadbalancer.fleet.replica import Replica
from loadbalancer.fleet.timing import Timing
from loadbalancer.routing.upstream import Upstream

EASING_STEPS = 20
"""Steps in which a recovered replica comes to its full share."""

FORGIVEN_AFTER = 10
"""A replica that has been good for so many times its first ejection begins anew with that."""


class Probe(Protocol):
    """Asks for a heartbeat; see `heartbeat.Prober.probe`."""

    async def probe(self, host: str, port: int) -> Miss | None:
        """None when the heartbeat was good."""


class Ward(Protocol):
    """What a watch changes together with others; every method takes the fleet's write lock."""

    async def beat(self, replica: Replica, miss: str | None) -> int:
        """Count a heartbeat, good (None) or missed (the reason); return the misses in a row."""

    async def eject(self, replica: Replica, reason: str) -> bool:
        """Take a living replica off the ring, unless half of the fleet is; say whether it was done."""

    async def readmit(self, replica: Replica) -> None:
        """Put it back on the ring."""


class Watch:
    """Watches one instance for as long as it is in rotation.

    Args:
        replica: Whom; it is up.
        instance: Its present incarnation.
        probe: How to ask for heartbeats.
        ward: Where shared state is changed.
        timing: How often, and how long.
    """

    def __init__(
        self, replica: Replica, instance: Instance, probe: Probe, ward: Ward, timing: Timing
    ) -> None:
        if replica.upstream is None:
            raise RuntimeError(f"{replica.hostname} is not in rotation")
        self._replica = replica
        self._instance = instance
        self._upstream: Upstream = replica.upstream
        self._probe = probe
        self._ward = ward
        self._timing = timing
        self._refused = asyncio.Event()
        self._failing = asyncio.Event()
        self._upstream.on_refusal = self._refused.set
        self._upstream.on_failure = self._failed

    async def until_dead(self) -> str:
        """Return when it has missed too many heartbeats, with the reason."""
        beside = [asyncio.create_task(self._eject_while_failing())]
        if self._timing.slow_start and self._replica.restarts:
            beside.append(asyncio.create_task(self._ease_in()))
        try:
            return await self._until_missed()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)

    async def _until_missed(self) -> str:
        ticker = Ticker(self._timing.interval)
        missed = 0
        while True:
            self._refused.clear()
            ticked = await ticker.tick(self._refused)
            miss = await self._heartbeat() if ticked else "it refused a connection"
            missed = await self._ward.beat(self._replica, miss)
            if missed >= self._timing.max_fail_count:
                return f"missed {missed} heartbeats in a row: {miss}"

    async def _heartbeat(self) -> str | None:
        """Ask for a heartbeat: None if the replica is alive, else why it was missed.

        Under a heavy load a heartbeat waits in the same queues as the requests. A replica that keeps
        answering them is busy, not dead, and taking it out would only drown the others.
        """
        upstream = self._upstream
        answered = upstream.successes
        miss = await self._probe.probe(self._instance.host, self._instance.port)
        if miss is None or (miss.timed_out and upstream.in_flight and upstream.successes > answered):
            return None
        return miss.reason

    # -- ejection ------------------------------------------------------------------------------------

    def _failed(self, in_a_row: int) -> None:
        if self._timing.eject_after and in_a_row >= self._timing.eject_after:
            self._failing.set()

    async def _eject_while_failing(self) -> None:
        loop = asyncio.get_running_loop()
        seconds, readmitted = self._timing.eject, loop.time()
        while True:
            await self._failing.wait()
            if loop.time() - readmitted >= FORGIVEN_AFTER * self._timing.eject:
                seconds = self._timing.eject
            count = self._upstream.consecutive_failures
            reason = f"ejected for {seconds:g} s after {count} failed requests in a row"
            if await self._ward.eject(self._replica, reason):
                await asyncio.sleep(seconds)
                seconds = min(2 * seconds, self._timing.eject_max)
                readmitted = loop.time()
                await self._ward.readmit(self._replica)
                await self._ease_in()
            self._upstream.consecutive_failures = 0
            self._failing.clear()

    async def _ease_in(self) -> None:
        """Let its share grow from little to the whole."""
        if not self._timing.slow_start:
            return
        try:
            for step in range(1, EASING_STEPS):
                self._upstream.share = step / EASING_STEPS
                await asyncio.sleep(self._timing.slow_start / EASING_STEPS)
        finally:
            self._upstream.share = 1.0
