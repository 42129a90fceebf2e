"""Runs replicas as containers of a Docker Engine, on the network of the load balancer.

The engine is the database: the labels of each container hold its fleet, hostname and ring number, so that a
restarted load balancer finds its replicas again. The name and the network alias of a container are the
hostname of the replica. Reading order: `start`, `stop`, `discard`, then `adopt`.
"""

import asyncio
import contextlib
import math
import os
import re
from collections import defaultdict
from typing import Any

import structlog
from aiodocker import Docker
from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError

from loadbalancer import __version__
from loadbalancer.errors import BackendError, BadRequestError
from loadbalancer.fleet.backends import engine, network
from loadbalancer.fleet.backends.base import Found, Instance, ReplicaSpec
from loadbalancer.fleet.backends.deaths import DeathWatch
from loadbalancer.fleet.backends.engine import CALL_WITHIN, CONFLICT, NOT_FOUND, engine_call, unless_missing
from loadbalancer.fleet.backends.ownership import Ownership, container_identity, process_identity
from loadbalancer.tasks import Jobs

GONE = "-gone-"
"""Part of the name of a dead container, whose former name is free for its replacement."""

LABEL = "loadbalancer.fleet"
LABEL_HOSTNAME = "loadbalancer.hostname"
LABEL_NUMBER = "loadbalancer.number"
LABEL_VERSION = "loadbalancer.version"

CONTAINER_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
MAX_HOSTNAME = 63
"""The longest name that Docker accepts as the hostname of a container (`HOST_NAME_MAX` is 64 on Linux)."""

log = structlog.get_logger(__name__)


class DockerBackend:
    """Runs each replica as a container.

    Args:
        image: Image of a replica. It must be on the engine; it is not pulled.
        replica_port: Port on which a replica listens.
        fleet: Name of the fleet, in the labels of its containers.
        chosen_network: Name of the network of the replicas; empty: found, or created.
        in_container: Whether the load balancer itself runs in a container of the engine.
    """

    name = "docker"

    def __init__(
        self, *, image: str, replica_port: int, fleet: str, chosen_network: str, in_container: bool
    ) -> None:
        self._image = image
        self._port = replica_port
        self._fleet = fleet
        self._chosen_network = chosen_network
        self._in_container = in_container
        self._removals = Jobs()
        self._dead: dict[str, list[Instance]] = defaultdict(list)
        self._docker: Docker
        self._network: network.ReplicaNetwork
        self._ownership: Ownership
        self._deaths: DeathWatch

    # -- the operations (see `base.Backend`) ----------------------------------------------------------

    async def open(self) -> None:
        """Connect, find the network, and check that the engine has the image."""
        self._docker = engine.connect()
        try:
            async with engine_call("use Docker"):
                await self._docker.version()
                await self._need_image()
                ours = await network.find_ourselves(self._docker) if self._in_container else None
                self._network = await network.find(
                    self._docker, self._chosen_network, self._fleet, LABEL, ours
                )
            owner = container_identity(ours) if ours else process_identity(os.getpid())
            self._ownership = Ownership(self._docker, self._fleet, LABEL, owner)
            await self._ownership.take()
        except BaseException:
            await self._docker.close()
            raise
        self._deaths = DeathWatch(self._docker, f"{LABEL}={self._fleet}")

    async def close(self) -> None:
        """Finish the removals in the background, give the fleet back, and disconnect from the engine."""
        if not hasattr(self, "_deaths"):
            return  # `open` has not succeeded
        await self._removals.finish()
        await self._deaths.close()
        await self._network.remove(self._docker)
        try:
            await self._ownership.give_back()
        except BackendError as error:
            log.warning("ownership left behind", reason=str(error))
        await self._docker.close()

    def check_name(self, hostname: str) -> None:
        """Refuse a hostname that cannot be the name of a container."""
        if not CONTAINER_NAME.fullmatch(hostname) or len(hostname) > MAX_HOSTNAME:
            raise BadRequestError(
                f"'{hostname}' cannot be the name of a container, which has 2 to {MAX_HOSTNAME} characters"
            )

    async def adopt(self) -> list[Found]:
        """Find the replicas of an earlier run, and remove its other containers."""
        self._deaths.begin()
        async with engine_call("list the replicas"):
            listed = await self._docker.containers.list(
                all=True, filters={"label": [f"{LABEL}={self._fleet}"]}
            )
            details = [await self._inspect(container) for container in listed]
        by_spec: dict[ReplicaSpec, list[dict[str, Any]]] = defaultdict(list)
        useless: list[str] = []
        for one in filter(None, details):
            spec = _spec_of(one)
            if spec is None:
                useless.append(one["Id"])
            else:
                by_spec[spec].append(one)
        found: dict[int, Found] = {}
        for spec, incarnations in sorted(by_spec.items(), key=lambda item: item[0].number):
            if spec.number in found or any(spec.hostname == other.spec.hostname for other in found.values()):
                useless.extend(one["Id"] for one in incarnations)
                continue
            alive = next((one for one in incarnations if self._is_usable(one, spec)), None)
            useless.extend(one["Id"] for one in incarnations if one is not alive)
            found[spec.number] = Found(spec, self._instance(alive) if alive else None)
        await asyncio.gather(*(self._remove(container_id) for container_id in useless))
        return list(found.values())

    async def start(self, spec: ReplicaSpec) -> Instance:
        """Create a container, start it, and ask for its address."""
        creating = asyncio.ensure_future(self._create(spec))
        try:
            async with engine_call(f"start {spec.hostname}", within=None):
                # A call that is cancelled may still create a container, whose id would then be unknown.
                container = await asyncio.shield(creating)
                self._remove_leftovers_later(spec)
                await container.start()
                details = await container.show()
            if not details["State"]["Running"]:
                raise BackendError(
                    f"{spec.hostname} ended at once: {await self._deaths.why_it_ended(container.id)}"
                )
            return self._instance(details)
        except BaseException:
            await self._undo(creating, spec)
            raise

    async def stop(self, instance: Instance, grace: float) -> None:
        """Have the engine send the stop signal of the image, wait, kill, and remove the container."""
        if grace > 0 and not instance.lost.done():
            patience = math.ceil(grace)
            async with engine_call("stop a replica", within=patience + CALL_WITHIN):
                with unless_missing():
                    await self._docker.containers.container(instance.id).stop(t=patience)
        await self._remove(instance.id)
        self._deaths.forget(instance, "stopped")

    async def discard(self, instance: Instance) -> None:
        """Rename the container, so that its name is free.

        A dead container stays until its replacement has been created. If the load balancer is killed before
        that, the next one finds the missing replica by the dead container.
        """
        async with engine_call("rename a dead replica"):
            container = self._docker.containers.container(instance.id)
            try:
                details = await container.show()
                name = details["Name"].removeprefix("/")
                if GONE not in name:
                    await container.rename(f"{name}{GONE}{instance.id[:12]}")
            except DockerError as error:
                if error.status != NOT_FOUND:
                    raise
                return
        spec = _spec_of(details)
        if spec is None:
            raise BackendError(f"{details['Name']} has lost the labels of its fleet")
        self._dead[spec.hostname].append(instance)
        if details["State"]["Running"]:
            self._remove_leftovers_later(spec)  # A hung container would go on using resources.

    async def remove_leftovers(self, spec: ReplicaSpec) -> None:
        """Remove the dead containers of a replica. The next call tries those that cannot be removed again."""
        dead = self._dead.get(spec.hostname, [])
        for instance in tuple(dead):
            if instance.lost.done():
                await asyncio.wait({instance.last_words}, timeout=CALL_WITHIN)
            await self.stop(instance, 0)
            with contextlib.suppress(ValueError):  # another call has removed it
                dead.remove(instance)
        if not dead:
            self._dead.pop(spec.hostname, None)

    # -- within -------------------------------------------------------------------------------------

    async def _need_image(self) -> None:
        try:
            await self._docker.images.inspect(self._image)
        except DockerError as error:
            if error.status != NOT_FOUND:
                raise
            raise BackendError(self._no_image()) from None

    def _no_image(self) -> str:
        return (
            f"there is no image '{self._image}': build it (docker compose build) or pull it "
            f"(docker pull {self._image}), or name another with --image"
        )

    async def _create(self, spec: ReplicaSpec) -> DockerContainer:
        try:
            return await self._docker.containers.create(self._config(spec), name=spec.hostname)
        except DockerError as error:
            if error.status == NOT_FOUND and "image" in error.message.lower():
                raise BackendError(f"cannot start {spec.hostname}: {self._no_image()}") from None
            if error.status != CONFLICT:
                raise
        await self._free_name(spec.hostname)
        return await self._docker.containers.create(self._config(spec), name=spec.hostname)

    async def _free_name(self, hostname: str) -> None:
        """Remove a leftover of this fleet that has a name we need. Other containers are left alone."""
        holder = await self._inspect(self._docker.containers.container(hostname))
        if holder is None:
            return
        if not self._is_leftover(holder):
            raise BackendError(
                f"cannot start {hostname}: that name is taken by a container of somebody else: "
                f"remove it (docker rm -f {hostname}) or choose another name"
            )
        await self._remove(holder["Id"])

    def _config(self, spec: ReplicaSpec) -> dict[str, Any]:
        return {
            "Image": self._image,
            "Hostname": spec.hostname,
            "Env": [f"PORT={self._port}", f"SERVER_ID={spec.hostname}"],
            "Labels": {
                LABEL: self._fleet,
                LABEL_HOSTNAME: spec.hostname,
                LABEL_NUMBER: str(spec.number),
                LABEL_VERSION: __version__,
            },
            # Without an init process, a program without a handler for SIGTERM would ignore it as process 1.
            "HostConfig": {"NetworkMode": self._network.name, "Init": True},
            "NetworkingConfig": {
                "EndpointsConfig": {
                    self._network.name: {"Aliases": [spec.hostname]} if self._network.has_names else {}
                }
            },
        }

    def _instance(self, details: dict[str, Any]) -> Instance:
        address = self._network.address(details)
        if address is None:
            name = details["Name"].removeprefix("/")
            raise BackendError(f"{name} has no address on the network '{self._network.name}'")
        instance = Instance(details["Id"], address, self._port)
        self._deaths.watch(instance)
        return instance

    def _is_usable(self, details: dict[str, Any], spec: ReplicaSpec) -> bool:
        """Whether a container of an earlier run can serve as it is."""
        return bool(
            details["State"]["Running"]
            and details["Name"] == f"/{spec.hostname}"
            and self._network.address(details)
        )

    def _is_leftover(self, details: dict[str, Any]) -> bool:
        """Whether a container belongs to this fleet, and no instance uses it any more."""
        return _labels(details).get(LABEL) == self._fleet and not self._deaths.knows(details["Id"])

    async def _inspect(self, container: DockerContainer) -> dict[str, Any] | None:
        with unless_missing():
            return await container.show()
        return None

    async def _undo(self, creating: "asyncio.Future[DockerContainer]", spec: ReplicaSpec) -> None:
        """Remove the container of a failed start."""
        try:
            async with engine_call(f"remove {spec.hostname}"):
                container = await creating
        except BackendError:
            return  # No container was created. The caller reports why.
        try:
            await self._remove(container.id)
        except BackendError as error:
            log.error("container left behind", replica=spec.hostname, reason=str(error))

    async def _remove(self, container_id: str) -> None:
        """Kill and remove a container, and return when it is gone."""
        container = self._docker.containers.container(container_id)
        async with engine_call("remove a replica"):
            try:
                await container.delete(force=True, v=True)
            except DockerError as error:
                if error.status == NOT_FOUND:
                    return
                if error.status != CONFLICT:
                    raise
                await self._until_removed(container)  # another call removes it

    @staticmethod
    async def _until_removed(container: DockerContainer) -> None:
        with unless_missing():
            await container.wait(condition="removed")

    def _remove_leftovers_later(self, spec: ReplicaSpec) -> None:
        async def remove() -> None:
            try:
                await self.remove_leftovers(spec)
            except BackendError as error:
                log.error("container left behind", replica=spec.hostname, reason=str(error))

        self._removals.start(remove(), f"remove leftovers of {spec.hostname}")


def _spec_of(details: dict[str, Any]) -> ReplicaSpec | None:
    """Read from the labels which replica a container is; None if the labels are invalid."""
    labels = _labels(details)
    hostname, number = labels.get(LABEL_HOSTNAME, ""), labels.get(LABEL_NUMBER, "")
    if not (hostname and number.isascii() and number.isdigit() and int(number) >= 1):
        return None
    return ReplicaSpec(hostname, int(number))


def _labels(details: dict[str, Any]) -> dict[str, str]:
    return details["Config"]["Labels"] or {}
