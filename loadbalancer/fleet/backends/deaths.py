"""Learning at once that a container has ended, or is ill, and why.

The engine tells of it in its event stream. The stream may break at any time, so it is subscribed to
again and again, from where it broke off, and after every gap the containers are listed anew: what ended
unseen is found there.
"""

import asyncio
import json
import time
from collections.abc import Coroutine
from typing import Any

import aiohttp
import structlog
from aiodocker import Docker
from aiodocker.exceptions import DockerError

from loadbalancer.errors import BackendError
from loadbalancer.fleet.backends import reasons
from loadbalancer.fleet.backends.base import Instance
from loadbalancer.fleet.backends.engine import engine_call, unless_missing

RECONNECT_AFTER = 0.5
"""Seconds between two attempts to subscribe."""

OVERLAP = 2.0
"""Seconds before a gap from which events are told again: clocks differ, and hearing twice does no harm."""

LAST_WORDS_WITHIN = 2.0
"""Seconds in which the engine must say how a container ended and what it said last."""

UNCLAIMED = 256
"""Deaths remembered of containers that nobody watches yet: one may end before its start is known."""

SIGNALLED = 128
"""Exit codes above are 128 and the number of the signal that ended the program."""

log = structlog.get_logger(__name__)


class DeathWatch:
    """Resolves `Instance.lost` and `last_words` of the containers that it is told to watch.

    Args:
        docker: The engine.
        label: `name=value` of the label that all of them carry.
    """

    def __init__(self, docker: Docker, label: str) -> None:
        self._docker = docker
        self._label = label
        self._watched: dict[str, Instance] = {}
        self._unclaimed: dict[str, str] = {}
        self._out_of_memory: set[str] = set()
        self._telling: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Listen from now on, until `close`."""
        self._task = asyncio.create_task(self._run(), name="docker events")

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, *self._telling, return_exceptions=True)

    def watch(self, instance: Instance) -> None:
        """Tell when this instance ends."""
        self._watched[instance.id] = instance
        if (how := self._unclaimed.pop(instance.id, None)) is not None:
            self._lost(instance, how)

    def forget(self, instance: Instance, how: str) -> None:
        """Its container is gone by our own doing."""
        self._watched.pop(instance.id, None)
        if not instance.lost.done():
            instance.lost.set_result(how)
            instance.last_words.set_result("")

    def knows(self, container_id: str) -> bool:
        """Whether a container is watched, so that somebody looks after it."""
        return container_id in self._watched

    async def look(self) -> None:
        """Find those that have ended unseen.

        Raises:
            BackendError: The engine does not say.
        """
        before = tuple(self._watched.values())
        async with engine_call("list the replicas"):
            listed = await self._docker.containers.list(filters={"label": [self._label]})
        running = {container.id for container in listed}
        for instance in before:
            if instance.id not in running:
                self._in_background(self._tell(instance))

    async def _run(self) -> None:
        since = time.time()
        reachable = True
        while True:
            try:
                subscription = self._docker.events.subscribe(  # type: ignore[no-untyped-call]
                    filters=json.dumps(
                        {
                            "type": ["container"],
                            "event": ["die", "oom", "health_status"],
                            "label": [self._label],
                        }
                    ),
                    since=f"{since - OVERLAP:.6f}",
                )
                await self.look()
                if not reachable:
                    log.info("the Docker Engine answers again")
                    reachable = True
                while (event := await subscription.get()) is not None:
                    since = time.time()
                    self._heard(event)
            except BackendError as error:
                if reachable:
                    log.warning("the Docker Engine does not answer", reason=str(error))
                reachable = False
            except Exception:
                log.exception("docker events failed")  # heartbeats still tell; and it is tried again
            finally:
                await self._unsubscribe()
            await asyncio.sleep(RECONNECT_AFTER)

    async def _unsubscribe(self) -> None:
        try:
            # aiodocker subscribes anew only after this, which also tells why the last one ended.
            await self._docker.events.stop()  # type: ignore[no-untyped-call]
        except (DockerError, aiohttp.ClientError, OSError) as error:
            log.debug("docker events broke off", reason=str(error))

    def _heard(self, event: dict[str, Any]) -> None:
        container_id, action = event["Actor"]["ID"], event["Action"]
        if action == "oom":
            self._out_of_memory.add(container_id)
            return
        if action == "die":
            code = int(event["Actor"]["Attributes"].get("exitCode", 0))
            how = _how(code, container_id in self._out_of_memory)
            self._out_of_memory.discard(container_id)
        elif action == "health_status: unhealthy":
            how = "its health check says that it is unhealthy"
        else:
            return
        if instance := self._watched.get(container_id):
            self._lost(instance, how)
        else:
            self._unclaimed[container_id] = how
            while len(self._unclaimed) > UNCLAIMED:
                del self._unclaimed[next(iter(self._unclaimed))]

    def _lost(self, instance: Instance, how: str) -> None:
        """Say at once that it is lost, and its last words when they are known."""
        del self._watched[instance.id]
        if not instance.lost.done():
            instance.lost.set_result(how)
            self._in_background(self._tell_last_words(instance))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell_last_words(self, instance: Instance) -> None:
        words = ""
        try:
            words = await self._last_words(instance.id)
        except BackendError as error:
            log.debug("last words unknown", reason=str(error))
        finally:
            instance.last_words.set_result(words)

    async def _tell(self, instance: Instance) -> None:
        """Say how one has ended that was found to be gone."""
        try:
            how = await self.how_it_ended(instance.id)
        except BackendError as error:
            how = f"ended; {error}"
        if self.knows(instance.id):
            self._lost(instance, how)

    async def how_it_ended(self, container_id: str) -> str:
        """Ask the engine how a container has ended.

        Raises:
            BackendError: The engine does not say.
        """
        async with engine_call("ask how it ended", LAST_WORDS_WITHIN):
            with unless_missing():
                state = (await self._docker.containers.container(container_id).show())["State"]
                return _how(state["ExitCode"], state["OOMKilled"])
        return "its container was removed by somebody else"

    async def why_it_ended(self, container_id: str) -> str:
        """The same with its last words.

        Raises:
            BackendError: The engine does not say.
        """
        words = await self._last_words(container_id)
        return reasons.with_last_words(await self.how_it_ended(container_id), words)

    async def _last_words(self, container_id: str) -> str:
        async with engine_call("ask for its last words", LAST_WORDS_WITHIN):
            with unless_missing():
                container = self._docker.containers.container(container_id)
                return reasons.last_words(
                    await container.log(stdout=True, stderr=True, tail=reasons.OUTPUT_LINES)
                )
        return ""


def _how(code: int, out_of_memory: bool) -> str:
    if out_of_memory:
        return "ran out of memory and was killed"
    if SIGNALLED < code <= SIGNALLED + 64:
        return f"{reasons.killed(code - SIGNALLED)} (exit code {code})"
    return reasons.exited(code)
