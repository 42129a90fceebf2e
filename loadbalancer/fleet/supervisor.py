"""The supervisor of a replica: starts it, watches it, replaces it when it dies, and stops it when it leaves.

    starting ─► up ─► dead? ─► down ─► starting ─► …
                  └─► told to leave? ─► draining ─► stopped ─► gone

Each step depends on the state of the replica alone. A fault of the supervisor (see `tasks.Service`) therefore
costs the replica nothing: the supervisor is resumed and continues in that state. A replica that is told to
leave is not interrupted by a cancellation; the supervisor notices the order wherever it waits.
"""

import asyncio
import random

import structlog

from loadbalancer.errors import BackendError, ClosingError, EngineAwayError
from loadbalancer.fleet.backends.base import Backend, Instance
from loadbalancer.fleet.health_recorder import HealthRecorder, Probe
from loadbalancer.fleet.heartbeat import Unsent
from loadbalancer.fleet.replica import Replica, State
from loadbalancer.fleet.roster import Roster
from loadbalancer.fleet.timing import Backoff, Timing
from loadbalancer.fleet.waiting import first_of
from loadbalancer.tasks import Service

READINESS_POLL = 0.05
"""Seconds between two heartbeats of a replica that has not answered yet."""

LAST_WORDS_WITHIN = 0.3
"""Seconds to wait for the last output of a dead instance before its replacement starts."""

ENGINE_POLL = 1.0
"""Seconds between two attempts to start a replica while the engine cannot be reached."""

STOP_ATTEMPTS = 3
"""Failed attempts to stop a replica after which it is reported as stuck. Further attempts follow."""

log = structlog.get_logger(__name__)


class ReplicaSupervisor:
    """Supervises one replica.

    Args:
        replica: The replica.
        backend: Runs its instances.
        probe: Sends heartbeats.
        roster: The shared state of the fleet.
        timing: Intervals and limits.
        starts: Limits how many instances start at the same time.
        hurry: Resolved when the shutdown must not wait for anything any more.
        rng: Source of jitter.
    """

    def __init__(
        self,
        replica: Replica,
        backend: Backend,
        probe: Probe,
        roster: Roster,
        timing: Timing,
        starts: asyncio.Semaphore,
        hurry: "asyncio.Future[None]",
        rng: random.Random,
    ) -> None:
        self.replica = replica
        self._backend = backend
        self._probe = probe
        self._roster = roster
        self._timing = timing
        self._starts = starts
        self._hurry = hurry
        self._backoff = Backoff(timing, rng)
        self._pause = 0.0
        """Seconds until the next start, once the replica is down."""
        self._instances = [replica.instance] if replica.instance else []
        """All instances that have been started and not been cleared away yet."""
        loop = asyncio.get_running_loop()
        self._leave: asyncio.Future[None] = loop.create_future()
        self._keep = False
        self._stop_attempts = 0
        self._stuck: asyncio.Future[str] = loop.create_future()
        self._try_again = asyncio.Event()
        """Ends the pause between two attempts to stop the replica."""
        self._service: Service | None = None

    def begin(self) -> "asyncio.Future[None]":
        """Supervise the replica from now on, unless this was called before.

        Returns:
            A future that is resolved when the replica is gone.
        """
        if self._service is None:
            self._service = Service(self._run, f"supervisor of {self.replica.hostname}")
            self._service.start()
        return self._service.ended

    def leave(self, *, keep: bool = False) -> None:
        """Tell the supervisor to drain and stop the replica, which is already out of rotation.

        If the replica is stuck, the attempts to stop it begin again.

        Args:
            keep: Leave the instance running, so that another load balancer can adopt it.
        """
        self._keep = keep
        if not self._leave.done():
            self._leave.set_result(None)
        elif self._stuck.done():
            self._stuck = asyncio.get_running_loop().create_future()
            self._stop_attempts = 0
            self._try_again.set()

    async def finished(self) -> None:
        """Wait until the replica is gone.

        Raises:
            BackendError: The replica could not be stopped in several attempts. Further attempts follow.
        """
        if self._service is None:
            return
        await first_of(self._service.ended, self._stuck)
        if not self._service.ended.done():
            raise BackendError(self._stuck.result())

    async def abandon(self) -> None:
        """End all attempts to stop the replica, because the load balancer ends."""
        if self._service is not None:
            await self._service.stop()

    async def launch(self) -> None:
        """Start an instance, unless one runs already, and wait for its first good heartbeat.

        Raises:
            BackendError: The instance did not start, ended at once, or never answered.
            ClosingError: The replica was told to leave meanwhile.
        """
        instance = self.replica.instance
        if instance is None:
            instance = await self._start()
            self._instances.append(instance)
            await self._roster.record_start(self.replica, instance)
        await self._until_ready(instance)

    # -- one step for each state ---------------------------------------------------------------------

    async def _run(self) -> None:
        steps = {
            State.STARTING: self._bring_up,
            State.UP: self._watch,
            State.DOWN: self._prepare_replacement,
        }
        while not self._leave.done():
            await steps[self.replica.state]()
        await self._retire()

    async def _bring_up(self) -> None:
        try:
            await self._discard_dead()
            await self.launch()
        except ClosingError:
            return
        except BackendError as error:
            # An engine that is away says nothing about the replica, which is needed as soon as it returns.
            self._pause = ENGINE_POLL if isinstance(error, EngineAwayError) else self._backoff.next()
            await self._roster.leave_rotation(self.replica, str(error))
        else:
            await self._roster.enter_rotation(self.replica)

    async def _watch(self) -> None:
        """Wait until the instance is dead; then take the replica out of rotation."""
        instance = self.replica.instance
        if instance is None:
            raise RuntimeError(f"{self.replica.hostname} is up without an instance")
        loop = asyncio.get_running_loop()
        began = loop.time()
        reason = await self._until_dead(instance)
        if self._leave.done():
            return
        if loop.time() - began >= self._timing.stable:
            self._backoff.reset()
        self._pause = self._backoff.next()
        ended_by_itself = instance.lost.done()
        await self._roster.leave_rotation(self.replica, reason)
        if ended_by_itself and (why := await instance.why_lost(LAST_WORDS_WITHIN)) != reason:
            await self._roster.record_explanation(self.replica, why)

    async def _prepare_replacement(self) -> None:
        """Clear the dead instance away, and wait for the time of the next start."""
        try:
            await self._discard_dead()
        except BackendError as error:
            log.warning("could not discard", replica=self.replica.hostname, reason=str(error))
        await first_of(self._leave, timeout=self._pause)
        if not self._leave.done():
            await self._roster.record_restart(self.replica)

    # -- parts of the steps --------------------------------------------------------------------------

    async def _start(self) -> Instance:
        try:
            async with asyncio.timeout(self._timing.start), self._starts:
                if self._leave.done():
                    raise ClosingError(f"{self.replica.hostname} was told to leave before it had started")
                return await self._backend.start(self.replica.spec)
        except TimeoutError:
            raise BackendError(
                f"{self.replica.hostname} could not be started within {self._timing.start:g} s"
            ) from None

    async def _until_ready(self, instance: Instance) -> None:
        """Wait for the first good heartbeat."""
        ready = await first_of(instance.lost, self._leave, work=self._until_good_heartbeat(instance))
        if self._leave.done():
            raise ClosingError(f"{self.replica.hostname} was told to leave before it was up")
        if not ready:
            why = await instance.why_lost(LAST_WORDS_WITHIN)
            raise BackendError(f"{self.replica.hostname} ended before its first heartbeat: {why}")

    async def _until_good_heartbeat(self, instance: Instance) -> None:
        """Send heartbeats until one is good. Time in which none can be sent does not count.

        Raises:
            BackendError: The time is up.
        """
        loop = asyncio.get_running_loop()
        reason = "none was sent"
        try:
            async with asyncio.timeout(self._timing.start) as limit:
                while (outcome := await self._probe.probe(instance.host, instance.port)) is not None:
                    reason = outcome.reason
                    if isinstance(outcome, Unsent):
                        limit.reschedule(loop.time() + self._timing.start)
                    await asyncio.sleep(READINESS_POLL)
        except TimeoutError:
            raise BackendError(
                f"{self.replica.hostname} gave no good heartbeat within {self._timing.start:g} s: {reason}"
            ) from None

    async def _until_dead(self, instance: Instance) -> str:
        """Return when the instance is dead or the replica is told to leave, with the reason."""
        recorder = HealthRecorder(self.replica, instance, self._probe, self._roster, self._timing)
        reason = "told to leave"

        async def record_health() -> None:
            nonlocal reason
            reason = await recorder.until_dead()

        await first_of(instance.lost, self._leave, work=record_health())
        return instance.lost.result() if instance.lost.done() else reason

    async def _discard_dead(self) -> None:
        """Free the hostname for a replacement."""
        for instance in tuple(self._instances):
            if instance is not self.replica.instance:
                await self._backend.discard(instance)
                self._instances.remove(instance)

    # -- the end -------------------------------------------------------------------------------------

    async def _retire(self) -> None:
        """Drain and stop the replica. Repeat this until it succeeds, so that nothing is left behind."""
        while True:
            if self._stop_attempts >= STOP_ATTEMPTS:
                self._report_stuck("its supervisor failed several times, see the log")
            self._stop_attempts += 1
            try:
                if not self._keep:
                    await self._drain()
                    await self._stop_all()
                await self._roster.remove(self.replica)
                return
            except BackendError as error:
                log.warning("could not stop", replica=self.replica.hostname, reason=str(error))
                if self._stop_attempts >= STOP_ATTEMPTS:
                    self._report_stuck(str(error))
                exponent = min(self._stop_attempts, 16)
                pause = min(self._timing.backoff * 2**exponent, self._timing.backoff_max)
                self._try_again.clear()
                await first_of(work=self._try_again.wait(), timeout=pause)

    def _report_stuck(self, reason: str) -> None:
        if not self._stuck.done():
            self._stuck.set_result(
                f"{self.replica.hostname} has left the fleet but could not be stopped: {reason}"
            )

    async def _drain(self) -> None:
        """Wait for the requests in flight, and have the idle connections closed."""
        upstream = self.replica.upstream
        if upstream is None:
            return
        if upstream.busy and not self._hurry.done():
            idle = asyncio.Event()
            upstream.on_idle = idle.set
            await first_of(self._hurry, work=idle.wait(), timeout=self._timing.drain)
        upstream.retire()

    async def _stop_all(self) -> None:
        for instance in tuple(self._instances):
            await self._stop(instance, self._timing.stop if instance is self.replica.instance else 0)
            self._instances.remove(instance)
        await self._backend.remove_leftovers(self.replica.spec)

    async def _stop(self, instance: Instance, grace: float) -> None:
        """Stop an instance, and end the grace when there is a hurry."""
        if not await first_of(self._hurry, work=self._backend.stop(instance, grace)):
            await self._backend.stop(instance, 0)
