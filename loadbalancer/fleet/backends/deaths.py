"""Learning at once that a container has ended, and why.

The engine tells of it in its event stream. The stream may break at any time, so it is subscribed to
again and again, from where it broke off, and after every gap the containers are listed anew: what ended
unseen is found there.
"""

import asyncio
import json
import time
from collections import deque
from typing import Any

import aiohttp
import structlog
from aiodocker import Docker
from aiodocker.exceptions import DockerError

from loadbalancer.errors import BackendError
from loadbalancer.fleet.backends import reasons
from loadbalancer.fleet.backends.base import Instance
from loadbalancer.fleet.backends.engine import NOT_FOUND, engine_call

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
    """Resolves `Instance.exited` of the containers that it is told to watch.

    Args:
        docker: The engine.
        label: `name=value` of the label that all of them carry.
    """

    def __init__(self, docker: Docker, label: str) -> None:
        self._docker = docker
        self._label = label
        self._watched: dict[str, Instance] = {}
        self._unclaimed: deque[str] = deque(maxlen=UNCLAIMED)
        self._out_of_memory: set[str] = set()
        self._explaining: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Listen from now on, until `close`."""
        self._task = asyncio.create_task(self._run(), name="docker events")

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, *self._explaining, return_exceptions=True)

    def watch(self, instance: Instance) -> None:
        """Tell when this instance ends."""
        self._watched[instance.id] = instance
        if instance.id in self._unclaimed:
            self._explain(instance)

    def forget(self, instance: Instance, reason: str) -> None:
        """Its container is gone by our own doing."""
        self._watched.pop(instance.id, None)
        self._out_of_memory.discard(instance.id)
        if not instance.exited.done():
            instance.exited.set_result(reason)

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
                self._explain(instance)

    async def _run(self) -> None:
        since = time.time()
        reachable = True
        while True:
            try:
                subscription = self._docker.events.subscribe(  # type: ignore[no-untyped-call]
                    filters=json.dumps(
                        {"type": ["container"], "event": ["die", "oom"], "label": [self._label]}
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
        container_id = event["Actor"]["ID"]
        if event["Action"] == "oom":
            self._out_of_memory.add(container_id)
        elif instance := self._watched.get(container_id):
            self._explain(instance)
        else:
            self._unclaimed.append(container_id)

    def _explain(self, instance: Instance) -> None:
        """Say that it has ended as soon as it is known why."""
        if self._watched.pop(instance.id, None) is None:
            return
        task = asyncio.create_task(self._tell(instance), name=f"why {instance.id[:12]} ended")
        self._explaining.add(task)
        task.add_done_callback(self._explaining.discard)

    async def _tell(self, instance: Instance) -> None:
        try:
            reason = await self.why(instance.id)
        except BackendError as error:
            reason = f"ended; {error}"
        if not instance.exited.done():
            instance.exited.set_result(reason)

    async def why(self, container_id: str) -> str:
        """Ask the engine how a container ended and what it said last.

        Raises:
            BackendError: The engine does not say.
        """
        container = self._docker.containers.container(container_id)
        async with engine_call("ask why it ended", LAST_WORDS_WITHIN):
            try:
                state = (await container.show())["State"]
                output = await container.log(stdout=True, stderr=True, tail=reasons.OUTPUT_LINES)
            except DockerError as error:
                if error.status != NOT_FOUND:
                    raise
                return "its container was removed by somebody else"
        out_of_memory = container_id in self._out_of_memory or state["OOMKilled"]
        self._out_of_memory.discard(container_id)
        return reasons.with_last_words(_how(state["ExitCode"], out_of_memory), output)


def _how(code: int, out_of_memory: bool) -> str:
    if out_of_memory:
        return "ran out of memory and was killed"
    if SIGNALLED < code <= SIGNALLED + 64:
        return f"{reasons.killed(code - SIGNALLED)} (exit code {code})"
    return reasons.exited(code)
