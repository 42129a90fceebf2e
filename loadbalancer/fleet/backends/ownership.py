"""One fleet, one load balancer: two would undo each other's work, replica by replica.

Who owns a fleet stands in the labels of a volume that bears the fleet's name, for making a volume is the
one thing that an engine does for one caller only. An owner that was killed leaves it behind, so the next
one looks whether that owner still lives: as a container of this engine, or as a process of this machine.
"""

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import structlog
from aiodocker import Docker

from loadbalancer.errors import BackendError
from loadbalancer.fleet.backends.engine import engine_call, unless_missing

KIND, WHERE, WHO, SINCE = (f"loadbalancer.owner.{part}" for part in ("kind", "where", "who", "since"))
CONTAINER, PROCESS = "container", "process"

SETTLES_WITHIN = 0.2
"""Seconds after which an owner that another has displaced in the same moment knows it."""

log = structlog.get_logger(__name__)


class Ownership:
    """Of one fleet.

    Args:
        docker: The engine.
        fleet: The fleet's name.
        label: The label that marks what belongs to a fleet.
        container: Inspection of the container that this program runs in; None on the host.
    """

    def __init__(self, docker: Docker, fleet: str, label: str, container: dict[str, str] | None) -> None:
        self._docker = docker
        self._fleet = fleet
        self._name = f"loadbalancer-{fleet}"
        self._labels = {label: fleet, **(container or _this_process())}

    async def take(self) -> None:
        """Become the owner.

        Raises:
            BackendError: Another load balancer is.
        """
        async with engine_call(f"take the fleet '{self._fleet}'"):
            owner = await self._claim()
            if owner != self._labels and not await self._is_alive(owner):
                log.info("taking over from a load balancer that is gone", owner=owner[WHO])
                await self._delete()
                await self._claim()
                await asyncio.sleep(SETTLES_WITHIN)
                owner = await self._claim()
        if owner != self._labels:
            raise BackendError(
                f"another load balancer runs the fleet '{self._fleet}' ({owner[KIND]} {owner[WHO][:12]} on "
                f"{owner[WHERE]}): give this one a fleet of its own with --fleet; "
                f"or, if that one is gone for good, docker volume rm {self._name}"
            )

    async def give_back(self) -> None:
        """Own it no longer."""
        async with engine_call(f"give the fleet '{self._fleet}' back"):
            await self._delete()

    async def _claim(self) -> dict[str, str]:
        """Make the volume unless it is there: the labels of whoever has made it."""
        volume = await self._docker.volumes.create(  # type: ignore[no-untyped-call]
            {"Name": self._name, "Labels": self._labels}
        )
        labels: dict[str, str] = (await volume.show())["Labels"] or {}
        return {KIND: "", WHERE: "", WHO: "", SINCE: "", **labels}

    async def _delete(self) -> None:
        with unless_missing():
            volume = await self._docker.volumes.get(self._name)  # type: ignore[no-untyped-call]
            await volume.delete()

    async def _is_alive(self, owner: dict[str, str]) -> bool:
        if owner[KIND] == CONTAINER:
            with unless_missing():
                state = (await self._docker.containers.container(owner[WHO]).show())["State"]
                return bool(state["Running"] and state["StartedAt"] == owner[SINCE])
            return False
        if owner[KIND] == PROCESS:
            elsewhere = owner[WHERE] != self._labels[WHERE]
            return elsewhere or _started(owner[WHO]) == owner[SINCE]
        return False


def this_container(details: dict[str, Any]) -> dict[str, str]:
    """Who we are, as a container.

    Args:
        details: Its inspection.
    """
    return {
        KIND: CONTAINER,
        WHERE: details["Config"]["Hostname"],
        WHO: details["Id"],
        SINCE: details["State"]["StartedAt"],
    }


def _this_process() -> dict[str, str]:
    pid = str(os.getpid())
    return {KIND: PROCESS, WHERE: socket.gethostname(), WHO: pid, SINCE: _started(pid)}


def _started(pid: str) -> str:
    """When a process was started, in the kernel's own count; empty if there is none such.

    Where there is no /proc, a process that has got the same id since is taken for the old one.
    """
    try:
        # proc(5): the 22nd field, the 20th after the name in brackets, which may hold anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        pass
    if Path("/proc/self").exists():
        return ""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "unknown"
