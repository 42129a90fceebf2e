"""Ownership of a fleet: only one load balancer may run it, because two would replace each other's replicas.

A volume of the Docker Engine is the claim to the fleet. Its labels name the owner. Creating a volume is
atomic: of several load balancers that create it, one succeeds, and the others read the labels of that one. An
owner that was killed leaves its claim behind. Another load balancer removes it after it has checked that the
owner is dead: that the container of the owner does not run, or that there is no such process on this machine.

Checking a claim and removing it are two calls, and another load balancer may do the same at the same time. So
a claim is removed only under a second claim, to the removal of this claim of this owner, and after it has
been read again. That claim follows the same rules: if its owner is dead, it is removed under a third one.
"""

import hashlib
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

Owner = dict[str, str]
"""The labels that identify a load balancer: see `container_identity` and `process_identity`."""

log = structlog.get_logger(__name__)


class Ownership:
    """Ownership of one fleet.

    Args:
        docker: The engine.
        fleet: Name of the fleet.
        label: Label of everything that belongs to a fleet.
        owner: Identity of this load balancer.
    """

    def __init__(self, docker: Docker, fleet: str, label: str, owner: Owner) -> None:
        self._docker = docker
        self._fleet = fleet
        self._name = f"loadbalancer-{fleet}"
        self._owner = owner
        self._labels = {label: fleet, **owner}

    async def take(self) -> None:
        """Become the owner of the fleet.

        Raises:
            BackendError: Another load balancer is the owner, or is about to become it.
        """
        async with engine_call(f"take the fleet '{self._fleet}'"):
            other = await self._acquire(self._name)
        if other is not None:
            raise BackendError(
                f"another load balancer runs the fleet '{self._fleet}' ({other[KIND]} {other[WHO][:12]} on "
                f"{other[WHERE]}): give this one a fleet of its own with --fleet; "
                f"or, if that one is gone for good, docker volume rm {self._name}"
            )

    async def give_back(self) -> None:
        """End the ownership, and remove everything that is left of earlier takeovers."""
        async with engine_call(f"give the fleet '{self._fleet}' back"):
            await self._remove_abandoned_removals()
            await self._delete(self._name)

    async def _acquire(self, claim: str) -> Owner | None:
        """Make a claim, and first remove it from an owner that is dead.

        Args:
            claim: Name of the volume.

        Returns:
            The owner, if that is another load balancer; None if the claim is ours now.
        """
        while (owner := await self._create(claim)) != self._owner:
            if owner is None:
                continue  # Another load balancer has just removed the claim.
            if await self._is_alive(owner):
                return owner
            removal = self._removal_of(claim, owner)
            if (other := await self._acquire(removal)) is not None:
                return other
            try:
                if await self._read(claim) == owner:
                    log.info("taking over from a load balancer that has ended", owner=owner[WHO])
                    await self._delete(claim)
            finally:
                await self._delete(removal)
        return None

    def _removal_of(self, claim: str, owner: Owner) -> str:
        """Name of the claim to remove a claim of an owner."""
        text = "\n".join([claim, *(owner[key] for key in (KIND, WHERE, WHO, SINCE))])
        return f"{self._name}-removal-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    async def _create(self, claim: str) -> Owner | None:
        """Create a volume unless it exists, and return its owner; None if it has been removed meanwhile."""
        await self._docker.volumes.create(  # type: ignore[no-untyped-call]
            {"Name": claim, "Labels": self._labels}
        )
        return await self._read(claim)

    async def _read(self, claim: str) -> Owner | None:
        with unless_missing():
            volume = await self._docker.volumes.get(claim)  # type: ignore[no-untyped-call]
            return _owner_of(await volume.show())
        return None

    async def _delete(self, claim: str) -> None:
        with unless_missing():
            volume = await self._docker.volumes.get(claim)  # type: ignore[no-untyped-call]
            await volume.delete()

    async def _remove_abandoned_removals(self) -> None:
        """Remove the claims to removals whose owners died. While we own the fleet, they protect nothing."""
        listed = await self._docker.volumes.list(  # type: ignore[no-untyped-call]
            filters={"name": [f"{self._name}-removal-"]}
        )
        for volume in listed["Volumes"] or ():
            if not await self._is_alive(_owner_of(volume)):
                await self._delete(volume["Name"])

    async def _is_alive(self, owner: Owner) -> bool:
        if owner[KIND] == CONTAINER:
            with unless_missing():
                state = (await self._docker.containers.container(owner[WHO]).show())["State"]
                return bool(state["Running"] and state["StartedAt"] == owner[SINCE])
            return False
        if owner[KIND] == PROCESS:
            elsewhere = owner[WHERE] != self._owner[WHERE]
            return elsewhere or _started(owner[WHO]) == owner[SINCE]
        return False


def container_identity(details: dict[str, Any]) -> Owner:
    """Identify a load balancer that runs in a container.

    Args:
        details: The inspection of the container.
    """
    return {
        KIND: CONTAINER,
        WHERE: details["Config"]["Hostname"],
        WHO: details["Id"],
        SINCE: details["State"]["StartedAt"],
    }


def process_identity(pid: int) -> Owner:
    """Identify a load balancer that runs as a process of this machine."""
    return {KIND: PROCESS, WHERE: socket.gethostname(), WHO: str(pid), SINCE: _started(str(pid))}


def _owner_of(volume: dict[str, Any]) -> Owner:
    labels = volume["Labels"] or {}
    return {key: labels.get(key, "") for key in (KIND, WHERE, WHO, SINCE)}


def _started(pid: str) -> str:
    """When a process started, in the unit of the kernel; empty if there is no such process.

    Without /proc, a later process with the same id is taken for the earlier one.
    """
    try:
        # proc(5): the 22nd field, which is the 20th after the name in brackets. The name may be any text.
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
