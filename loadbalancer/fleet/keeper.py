"""A keeper looks after one replica from its start to its end: one replica's life, in one coroutine.

    launch ─► in rotation ─► watch ─► dead? ─► discard, launch the replacement ─► …
                               └────► told to leave? ─► drain ─► stop ─► gone

A keeper is never cancelled in the middle of anything: it is told to leave, and looks up from whatever
it waits for. So nothing half-made stays behind, however the orders come. What others must agree on —
state, membership, heartbeat counts — it changes only through the `Registry`, which is the fleet.
"""

import asyncio
import random
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from loadbalancer.errors import BackendError, ClosingError
from loadbalancer.fleet.backends.base import Backend, Instance
from loadbalancer.fleet.heartbeat import Miss, Ticker
from loadbalancer.fleet.replica import Replica, State

READINESS_POLL = 0.05
"""Seconds between two heartbeats of a replica that has not answered yet: soon in rotation, soon useful."""

STOP_ATTEMPTS = 3
"""How often stopping a replica is tried before it is given up and reported."""

log = structlog.get_logger(__name__)


class Probe(Protocol):
    """Asks for a heartbeat; see `heartbeat.Prober.probe`."""

    async def probe(self, host: str, port: int) -> Miss | None:
        """None when the heartbeat was good."""


class Registry(Protocol):
    """What a keeper changes together with others; every method takes the fleet's write lock."""

    async def started(self, replica: Replica, instance: Instance) -> None:
        """An instance fills the replica's place."""

    async def in_rotation(self, replica: Replica) -> None:
        """The replica is up: put it on the ring."""

    async def out_of_rotation(self, replica: Replica, reason: str) -> None:
        """The replica is down, or could not start: take it off the ring and forget its instance."""

    async def restarting(self, replica: Replica) -> None:
        """A replacement is about to be started."""

    async def beat(self, replica: Replica, miss: str | None) -> int:
        """Count a heartbeat, good (None) or missed (the reason); return the misses in a row."""

    async def gone(self, replica: Replica) -> None:
        """The replica has ended: free its name and number."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a keeper waits, in seconds, and how often.

    Args:
        interval: Between two heartbeats.
        max_fail_count: Misses in a row that mean dead.
        start: Until the first good heartbeat of a new instance.
        drain: For requests in flight when a replica leaves.
        stop: Between SIGTERM and SIGKILL.
        backoff: Before the second attempt to replace an instance that did not last; doubles from there.
        backoff_max: At most between two attempts.
        stable: An instance that was up for this long has lasted: the next death is answered at once.
    """

    interval: float = 1.0
    max_fail_count: int = 3
    start: float = 30.0
    drain: float = 10.0
    stop: float = 5.0
    backoff: float = 0.5
    backoff_max: float = 30.0
    stable: float = 10.0


class Backoff:
    """Exponential backoff with equal jitter: half of the delay is fixed, half is random.

    The first failure after a stable time is answered at once. See M. Brooker, "Exponential Backoff And
    Jitter", AWS Architecture Blog, 2015.
    """

    def __init__(self, timing: Timing, rng: random.Random) -> None:
        self._timing = timing
        self._rng = rng
        self._failures = 0

    def reset(self) -> None:
        """The instance has lasted."""
        self._failures = 0

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        exponent = min(self._failures - 1, 32)
        self._failures += 1
        if exponent < 0:
            return 0.0
        ceiling = min(self._timing.backoff * 2.0**exponent, self._timing.backoff_max)
        return ceiling * (0.5 + 0.5 * self._rng.random())


class Keeper:
    """Looks after one replica.

    Args:
        replica: Whom.
        backend: Where it runs.
        probe: How to ask for heartbeats.
        registry: Where shared state is changed.
        timing: How long to wait for what.
        starts: Bounds how many instances are started at once.
        hurry: Resolved when shutdown should wait for nothing any more.
        rng: Source of jitter.
    """

    def __init__(
        self,
        replica: Replica,
        backend: Backend,
        probe: Probe,
        registry: Registry,
        timing: Timing,
        starts: asyncio.Semaphore,
        hurry: "asyncio.Future[None]",
        rng: random.Random,
    ) -> None:
        self.replica = replica
        self._backend = backend
        self._probe = probe
        self._registry = registry
        self._timing = timing
        self._starts = starts
        self._hurry = hurry
        self._backoff = Backoff(timing, rng)
        self._leave: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Look after the replica from now on, in a task that `finished` awaits."""
        self._task = asyncio.create_task(self._run(), name=f"keeper of {self.replica.hostname}")

    def leave(self) -> None:
        """Tell the replica to go: it drains, stops and is gone. The caller has taken it off the ring."""
        if not self._leave.done():
            self._leave.set_result(None)

    async def finished(self) -> None:
        """Wait until the replica is gone.

        Raises:
            BackendError: It left the fleet, but could not be stopped.
        """
        if self._task is not None:
            await asyncio.shield(self._task)

    async def launch(self) -> Instance:
        """Start an instance, unless there is one already, and wait for its first good heartbeat.

        Raises:
            BackendError: It did not start, ended at once, or never answered; nothing stays behind.
            ClosingError: It was told to leave meanwhile; nothing stays behind.
        """
        instance = self.replica.instance
        if instance is None:
            instance = await self._start()
            await self._registry.started(self.replica, instance)
        try:
            await self._until_ready(instance)
        except Exception:
            self.replica.instance = None
            await self._clear_away(instance)
            raise
        return instance

    async def abandon(self) -> None:
        """Clear away what `launch` has started, when the change it belongs to has failed."""
        if self.replica.instance is not None:
            await self._clear_away(self.replica.instance)
        await self._registry.gone(self.replica)

    # -- the life ------------------------------------------------------------------------------

    async def _run(self) -> None:
        while not self._leave.done():
            try:
                reason = await self._one_instance()
            except ClosingError:
                break
            except BackendError as error:
                reason = str(error)
            except Exception as error:
                log.exception("keeper failed", replica=self.replica.hostname)
                reason = f"the load balancer failed: {type(error).__name__}: {error}"
            if self._leave.done():
                break
            await self._give_up_instance(reason)
            await self._first_of(self._leave, timeout=self._backoff.next())
            if not self._leave.done():
                await self._registry.restarting(self.replica)
        await self._retire()

    async def _one_instance(self) -> str:
        """Launch an instance, if need be, and watch it until it is dead: why it died."""
        loop = asyncio.get_running_loop()
        instance = self.replica.instance
        if instance is None or self.replica.state is not State.UP:
            instance = await self.launch()
            await self._registry.in_rotation(self.replica)
        since = loop.time()
        reason = await self._watch(instance)
        if loop.time() - since >= self._timing.stable:
            self._backoff.reset()
        return reason

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
        last = "it was never asked"

        async def ask() -> None:
            nonlocal last
            while (miss := await self._probe.probe(instance.host, instance.port)) is not None:
                last = miss.reason
                await asyncio.sleep(READINESS_POLL)

        ready = await self._first_of(instance.exited, self._leave, work=ask(), timeout=self._timing.start)
        if self._leave.done():
            raise ClosingError(f"{self.replica.hostname} was told to leave before it was up")
        if instance.exited.done():
            raise BackendError(
                f"{self.replica.hostname} ended before its first heartbeat: {instance.exited.result()}"
            )
        if not ready:
            raise BackendError(
                f"{self.replica.hostname} gave no good heartbeat within {self._timing.start:g} s: {last}"
            )

    async def _watch(self, instance: Instance) -> str:
        """Return when the instance is dead or the replica shall leave, with the reason."""
        reason = "told to leave"

        async def beats() -> None:
            nonlocal reason
            ticker = Ticker(self._timing.interval)
            missed = 0
            while missed < self._timing.max_fail_count:
                await ticker.tick()
                miss = await self._heartbeat(instance)
                missed = await self._registry.beat(self.replica, miss)
                reason = f"missed {missed} heartbeats in a row: {miss}"

        await self._first_of(instance.exited, self._leave, work=beats())
        return instance.exited.result() if instance.exited.done() else reason

    async def _heartbeat(self, instance: Instance) -> str | None:
        """Ask for a heartbeat: None if the replica is alive, else why it was missed.

        Under a heavy load a heartbeat waits in the same queues as the requests. A replica that keeps
        answering them is busy, not dead, and taking it out would only drown the others.
        """
        upstream = self.replica.upstream
        answered = upstream.answered if upstream else 0
        miss = await self._probe.probe(instance.host, instance.port)
        if miss is None:
            return None
        if miss.timed_out and upstream and upstream.in_flight and upstream.answered > answered:
            return None
        return miss.reason

    async def _give_up_instance(self, reason: str) -> None:
        instance = self.replica.instance
        await self._registry.out_of_rotation(self.replica, reason)
        if instance is not None:
            try:
                await self._backend.discard(instance)
            except BackendError as error:
                log.warning("could not discard", replica=self.replica.hostname, reason=str(error))

    # -- the end -------------------------------------------------------------------------------

    async def _retire(self) -> None:
        try:
            await self._drain()
            if self.replica.instance is not None:
                await self._stop(self.replica.instance, self._timing.stop)
        finally:
            await self._registry.gone(self.replica)

    async def _drain(self) -> None:
        """Let the requests in flight end."""
        upstream = self.replica.upstream
        if upstream is None or upstream.in_flight == 0:
            return
        idle = asyncio.Event()
        upstream.on_idle = idle.set
        await self._first_of(self._hurry, work=idle.wait(), timeout=self._timing.drain)

    async def _clear_away(self, instance: Instance) -> None:
        """Kill an instance that has served nobody; if that fails too, the first failure matters more."""
        try:
            await self._stop(instance, grace=0)
        except BackendError as error:
            log.error(
                "instance left behind", replica=self.replica.hostname, id=instance.id, reason=str(error)
            )

    async def _stop(self, instance: Instance, grace: float) -> None:
        for attempt in range(1, STOP_ATTEMPTS + 1):
            stopping = asyncio.create_task(self._backend.stop(instance, grace))
            try:
                await asyncio.wait({stopping, self._hurry}, return_when=asyncio.FIRST_COMPLETED)
                if not stopping.done():
                    await self._backend.stop(instance, 0)
                await stopping
            except BackendError as error:
                if attempt == STOP_ATTEMPTS:
                    raise BackendError(
                        f"{self.replica.hostname} has left the fleet but could not be stopped: {error}"
                    ) from error
                log.warning("could not stop", replica=self.replica.hostname, reason=str(error))
                await self._first_of(self._hurry, timeout=self._timing.backoff * 2**attempt)
            else:
                return

    async def _first_of(
        self,
        *signals: "asyncio.Future[Any]",
        work: Awaitable[object] | None = None,
        timeout: float | None = None,
    ) -> bool:
        """Wait for any signal, or the end of the work, or the time-out; say whether the work was done.

        Work that is overtaken is cancelled; signals belong to others and are left alone.
        """
        if work is None:
            await asyncio.wait(signals, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            return False
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({*signals, task}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return True
            return False
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
