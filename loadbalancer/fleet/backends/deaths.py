"""Reports at once that a container has ended or is unhealthy, and why.

The engine reports it in its event stream. When the stream breaks, it is subscribed to again from the time at
which it broke, and the containers are listed, so that containers which ended in the gap are found.
"""

import asyncio
import json
import time
from typing import Any

import aiohttp
import structlog
from aiodocker import Docker
from aiodocker.exceptions import DockerError

from loadbalancer.errors import BackendError
from loadbalancer.fleet.backends import reasons
from loadbalancer.fleet.backends.base import Instance
from loadbalancer.fleet.backends.engine import engine_call, unless_missing
from loadbalancer.tasks import Jobs, Service

RECONNECT_AFTER = 0.5
"""Seconds between two attempts to subscribe."""

OVERLAP = 2.0
"""Seconds before a gap from which events are repeated, because clocks differ. Repetitions do no harm."""

LAST_WORDS_WITHIN = 2.0
"""Seconds in which the engine must report how a container ended and its last output."""

UNCLAIMED = 256
"""Deaths that are kept for containers without an instance. A container may end before its start is known."""

SIGNALLED = 128
"""Exit codes above this are the sum of 128 and the number of the signal that ended the program."""

log = structlog.get_logger(__name__)


class DeathWatch:
    """Resolves `Instance.lost` and `Instance.last_words` of the containers that it watches.

    Args:
        docker: The engine.
        label: Label of the fleet's containers, as `name=value`.
    """

    def __init__(self, docker: Docker, label: str) -> None:
        self._docker = docker
        self._label = label
        self._watched: dict[str, Instance] = {}
        self._unclaimed: dict[str, str] = {}
        self._out_of_memory: set[str] = set()
        self._reports = Jobs()
        self._listening = Service(self._listen, "docker events")
        self._since = time.time()
        """Time of the last event."""
        self._reachable = True

    def begin(self) -> None:
        """Listen to the engine until `close`."""
        self._listening.start()

    async def close(self) -> None:
        """Stop listening."""
        await self._listening.stop()
        await self._reports.cancel()

    def watch(self, instance: Instance) -> None:
        """Watch an instance from now on."""
        self._watched[instance.id] = instance
        if (how := self._unclaimed.pop(instance.id, None)) is not None:
            self._lost(instance, how)

    def forget(self, instance: Instance, how: str) -> None:
        """Stop watching an instance, whose container we have removed."""
        self._watched.pop(instance.id, None)
        if not instance.lost.done():
            instance.lost.set_result(how)
            instance.last_words.set_result("")

    def knows(self, container_id: str) -> bool:
        """Whether a container is watched."""
        return container_id in self._watched

    async def look(self) -> None:
        """Find the containers that have ended without an event.

        Raises:
            BackendError: The engine does not answer, or refuses.
        """
        before = tuple(self._watched.values())
        async with engine_call("list the replicas"):
            listed = await self._docker.containers.list(filters={"label": [self._label]})
        running = {container.id for container in listed}
        for instance in before:
            if instance.id not in running:
                self._reports.start(self._report(instance), f"end of {instance.id[:12]}")

    async def _listen(self) -> None:
        while True:
            try:
                await self._take_events()
            except BackendError as error:
                if self._reachable:
                    log.warning("the Docker Engine does not answer", reason=str(error))
                self._reachable = False
            finally:
                await self._unsubscribe()
            await asyncio.sleep(RECONNECT_AFTER)

    async def _take_events(self) -> None:
        """Subscribe, and take events until the stream breaks."""
        subscription = self._docker.events.subscribe(  # type: ignore[no-untyped-call]
            filters=json.dumps(
                {
                    "type": ["container"],
                    "event": ["die", "oom", "health_status"],
                    "label": [self._label],
                }
            ),
            since=f"{self._since - OVERLAP:.6f}",
        )
        await self.look()
        if not self._reachable:
            log.info("the Docker Engine answers again")
            self._reachable = True
        while (event := await subscription.get()) is not None:
            self._since = time.time()
            self._take(event)

    async def _unsubscribe(self) -> None:
        try:
            # aiodocker can subscribe again only after this call. It raises the error that ended the stream.
            await self._docker.events.stop()  # type: ignore[no-untyped-call]
        except (DockerError, aiohttp.ClientError, OSError) as error:
            log.debug("docker events ended", reason=str(error))

    def _take(self, event: dict[str, Any]) -> None:
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
        """Report that an instance is lost at once, and its last output when that is known."""
        del self._watched[instance.id]
        if not instance.lost.done():
            instance.lost.set_result(how)
            self._reports.start(self._report_last_words(instance), f"last words of {instance.id[:12]}")

    async def _report_last_words(self, instance: Instance) -> None:
        words = ""
        try:
            words = await self._last_words(instance.id)
        except BackendError as error:
            log.debug("last output unknown", reason=str(error))
        finally:
            if not instance.last_words.done():
                instance.last_words.set_result(words)

    async def _report(self, instance: Instance) -> None:
        """Report how a container ended that was found missing."""
        try:
            how = await self.how_it_ended(instance.id)
        except BackendError as error:
            how = f"ended; {error}"
        if self.knows(instance.id):
            self._lost(instance, how)

    async def how_it_ended(self, container_id: str) -> str:
        """Ask the engine how a container ended.

        Raises:
            BackendError: The engine does not answer, or refuses.
        """
        async with engine_call("ask how it ended", LAST_WORDS_WITHIN):
            with unless_missing():
                state = (await self._docker.containers.container(container_id).show())["State"]
                return _how(state["ExitCode"], state["OOMKilled"])
        return "its container was removed by somebody else"

    async def why_it_ended(self, container_id: str) -> str:
        """Ask the engine how a container ended, and for its last output.

        Raises:
            BackendError: The engine does not answer, or refuses.
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
