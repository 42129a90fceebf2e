"""A keeper looks after one replica from its start to its end: one replica's life, in one coroutine.

    launch ─► in rotation ─► watch ─► dead? ─► discard, launch the replacement ─► …
                               └────► told to leave? ─► drain ─► stop ─► gone

A keeper is never cancelled in the middle of anything: it is told to leave, and looks up from whatever
it waits for. So nothing half-made stays behind, however the orders come. What others must agree on —
state, membership, heartbeat counts — it changes only through the `Registry`, which is the roster.
"""

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Protocol

import structlog

from loadbalancer.errors import BackendError, ClosingError, EngineAwayError
from loadbalancer.fleet.backends.base import Backend, Instance
from loadbalancer.fleet.replica import Replica, State
from loadbalancer.fleet.timing import Backoff, Timing
from loadbalancer.fleet.waiting import first_of
from loadbalancer.fleet.watch import Probe, Ward, Watch

READINESS_POLL = 0.05
"""Seconds between two heartbeats of a replica that has not answered yet: soon in rotation, soon useful."""

LAST_WORDS_WITHIN = 0.3
"""Seconds for the last output of a dead instance to become known; its replacement waits for no more."""

ENGINE_POLL = 1.0
"""Seconds between two attempts to start a replica while the engine cannot be reached."""

STOP_ATTEMPTS = 3
"""How often stopping a replica is tried before it is reported as stuck; it is tried further then."""

log = structlog.get_logger(__name__)


class Registry(Ward, Protocol):
    """What a keeper changes together with others; every method takes the fleet's write lock."""

    async def started(self, replica: Replica, instance: Instance) -> None:
        """An instance fills the replica's place."""

    async def in_rotation(self, replica: Replica) -> None:
        """The replica is up: put it on the ring."""

    async def out_of_rotation(self, replica: Replica, reason: str) -> None:
        """The replica is down, or could not start: take it off the ring and forget its instance."""

    async def explained(self, replica: Replica, reason: str) -> None:
        """More has become known of why it is down."""

    async def restarting(self, replica: Replica) -> None:
        """A replacement is about to be started."""

    async def gone(self, replica: Replica) -> None:
        """The replica has ended: free its name and number."""


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
        self._keep = False
        self._dead: deque[Instance] = deque()
        self._stuck: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None

    def begin(self, when_gone: Callable[[], object]) -> None:
        """Look after the replica from now on, in a task that `finished` awaits.

        Args:
            when_gone: Called when there is nothing to look after any more.
        """
        self._task = asyncio.create_task(self._run(), name=f"keeper of {self.replica.hostname}")
        self._task.add_done_callback(lambda _: when_gone())

    def leave(self, *, keep: bool = False) -> None:
        """Tell the replica to go: it drains, stops and is gone. The caller has taken it off the ring.

        Args:
            keep: Let its instance run on, for another load balancer to adopt.
        """
        self._keep = keep
        if not self._leave.done():
            self._leave.set_result(None)

    async def finished(self) -> None:
        """Wait until the replica is gone.

        Raises:
            BackendError: It has left the fleet, but cannot be stopped; it is tried again and again.
        """
        if self._task is None:
            return
        await first_of(self._task, self._stuck)
        if not self._task.done():
            raise BackendError(self._stuck.result())
        self._task.result()

    async def give_up(self) -> None:
        """Try no longer what could not be done: the load balancer ends."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def launch(self) -> Instance:
        """Start an instance, unless there is one already, and wait for its first good heartbeat.

        Raises:
            BackendError: It did not start, ended at once, or never answered.
            ClosingError: It was told to leave meanwhile.
        """
        instance = self.replica.instance
        if instance is None:
            instance = await self._start()
            await self._registry.started(self.replica, instance)
        await self._until_ready(instance)
        return instance

    # -- the life ------------------------------------------------------------------------------

    async def _run(self) -> None:
        while not self._leave.done():
            engine_away = False
            try:
                await self._discard_dead()
                reason = await self._one_instance()
            except ClosingError:
                break
            except BackendError as error:
                reason = str(error)
                engine_away = isinstance(error, EngineAwayError)
            except Exception as error:
                log.exception("keeper failed", replica=self.replica.hostname)
                reason = f"the load balancer failed: {type(error).__name__}: {error}"
            if self._leave.done():
                break
            await self._give_up_instance(reason)
            # That the engine is away says nothing about the replica, which is wanted as soon as it is back.
            await first_of(self._leave, timeout=ENGINE_POLL if engine_away else self._backoff.next())
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

        ready = await first_of(instance.lost, self._leave, work=ask(), timeout=self._timing.start)
        if self._leave.done():
            raise ClosingError(f"{self.replica.hostname} was told to leave before it was up")
        if instance.lost.done():
            why = await instance.why_lost(LAST_WORDS_WITHIN)
            raise BackendError(f"{self.replica.hostname} ended before its first heartbeat: {why}")
        if not ready:
            raise BackendError(
                f"{self.replica.hostname} gave no good heartbeat within {self._timing.start:g} s: {last}"
            )

    async def _watch(self, instance: Instance) -> str:
        """Return when the instance is dead or the replica shall leave, with the reason."""
        reason = "told to leave"

        async def heartbeats() -> None:
            nonlocal reason
            reason = await Watch(
                self.replica, instance, self._probe, self._registry, self._timing
            ).until_dead()

        if self.replica.upstream is not None:
            await first_of(instance.lost, self._leave, work=heartbeats())
        return instance.lost.result() if instance.lost.done() else reason

    async def _give_up_instance(self, reason: str) -> None:
        """Take the replica off the ring at once; then make way for its replacement."""
        instance = self.replica.instance
        ended_by_itself = instance is not None and instance.lost.done()
        await self._registry.out_of_rotation(self.replica, reason)
        if instance is not None:
            self._dead.append(instance)
        try:
            await self._discard_dead()
        except BackendError as error:
            log.warning("could not discard", replica=self.replica.hostname, reason=str(error))
        if (
            instance is not None
            and ended_by_itself
            and (why := await instance.why_lost(LAST_WORDS_WITHIN)) != reason
        ):
            await self._registry.explained(self.replica, why)

    async def _discard_dead(self) -> None:
        """Free the name for a replacement; what could not be discarded is tried again before each start."""
        while self._dead:
            await self._backend.discard(self._dead[0])
            self._dead.popleft()

    # -- the end -------------------------------------------------------------------------------

    async def _retire(self) -> None:
        try:
            if not self._keep:
                await self._drain()
                await self._stop_all()
        finally:
            await self._registry.gone(self.replica)

    async def _drain(self) -> None:
        """Let the requests in flight end, then the idle connections."""
        upstream = self.replica.upstream
        if upstream is None:
            return
        if upstream.busy:
            idle = asyncio.Event()
            upstream.on_idle = idle.set
            await first_of(self._hurry, work=idle.wait(), timeout=self._timing.drain)
        upstream.retire()

    async def _stop_all(self) -> None:
        """Stop what still runs, again and again until it is done: nothing may be left behind."""
        for attempt in itertools.count(1):
            try:
                while self._dead:
                    await self._stop(self._dead[0], grace=0)
                    self._dead.popleft()
                if self.replica.instance is not None:
                    await self._stop(self.replica.instance, self._timing.stop)
                await self._backend.release(self.replica.spec)
                return
            except BackendError as error:
                log.warning("could not stop", replica=self.replica.hostname, reason=str(error))
                if attempt == STOP_ATTEMPTS:
                    sentence = f"{self.replica.hostname} has left the fleet but could not be stopped: {error}"
                    self._stuck.set_result(sentence)
                await asyncio.sleep(
                    min(self._timing.backoff * 2 ** min(attempt, 16), self._timing.backoff_max)
                )

    async def _stop(self, instance: Instance, grace: float) -> None:
        stopping = asyncio.create_task(self._backend.stop(instance, grace))
        await asyncio.wait({stopping, self._hurry}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            await self._backend.stop(instance, 0)
        await stopping
