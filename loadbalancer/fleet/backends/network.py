"""Finds or creates the Docker network of the replicas, on which the load balancer can reach them.

In a container, it is the network of the load balancer, which inspects its own container. On the host, it is a
bridge network that is created at the start and removed at the end. `--network` overrides both.
"""

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from aiodocker import Docker
from aiodocker.exceptions import DockerError

from loadbalancer.errors import BackendError
from loadbalancer.fleet.backends.engine import NOT_FOUND, engine_call, unless_missing

DEFAULT_BRIDGE = "bridge"
"""The default network of Docker. Containers on it have addresses, but no names."""

_NO_NETWORK = ("host", "none")
_ID_IN_MOUNTS = re.compile(r"/containers/([0-9a-f]{64})/")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReplicaNetwork:
    """The network of the replicas.

    Args:
        id: Its id.
        name: Its name.
        own: Whether it was created for this fleet, and is removed with the fleet.
    """

    id: str
    name: str
    own: bool = False

    @property
    def has_names(self) -> bool:
        """Whether containers can find each other by name."""
        return self.name != DEFAULT_BRIDGE

    def address(self, details: dict[str, Any]) -> str | None:
        """The address of a container on this network, from its inspection; None if it has none."""
        for endpoint in details["NetworkSettings"]["Networks"].values():
            if endpoint["NetworkID"] == self.id:
                return endpoint["IPAddress"] or endpoint["GlobalIPv6Address"] or None
        return None

    async def remove(self, docker: Docker) -> None:
        """Remove the network if it was created for this fleet."""
        if not self.own:
            return
        try:
            async with engine_call(f"remove the network '{self.name}'"):
                await (await docker.networks.get(self.id)).delete()
        except BackendError as error:
            log.warning("network left behind", network=self.name, reason=str(error))


async def find(
    docker: Docker, chosen: str, fleet: str, label: str, ourselves: dict[str, Any] | None
) -> ReplicaNetwork:
    """Find the network of the replicas, or create it.

    Args:
        docker: The engine.
        chosen: Name of the network that the user has chosen; may be empty.
        fleet: Name of the fleet.
        label: Label of everything that belongs to a fleet.
        ourselves: Inspection of the container of the load balancer; None on the host.

    Raises:
        BackendError: There is no network, and none can be created.
    """
    if chosen:
        try:
            details = await (await docker.networks.get(chosen)).show()
        except DockerError as error:
            if error.status != NOT_FOUND:
                raise
            raise BackendError(
                f"--network: there is no network '{chosen}': make it (docker network create {chosen})"
            ) from None
        return ReplicaNetwork(details["Id"], details["Name"])
    if ourselves is not None and (ours := _network_of(ourselves)):
        return ours
    return await _make(docker, f"loadbalancer-{fleet}", {label: fleet})


def _network_of(details: dict[str, Any]) -> ReplicaNetwork | None:
    """The network of a container; None if it uses the network of the host."""
    networks = details["NetworkSettings"]["Networks"]
    # Networks that a user has created come before Docker's default, because only they have names.
    for name in sorted(networks, key=lambda name: (name == DEFAULT_BRIDGE, name)):
        if name not in _NO_NETWORK:
            return ReplicaNetwork(networks[name]["NetworkID"], name)
    return None


async def find_ourselves(docker: Docker) -> dict[str, Any]:
    """Inspect the container of the load balancer. Its mounts, or else its hostname, contain the id.

    Args:
        docker: The engine.

    Raises:
        BackendError: This engine does not know the container.
    """
    candidates = [socket.gethostname()]
    mounts = Path("/proc/self/mountinfo").read_text()  # noqa: ASYNC240 - the kernel makes it, no disk
    if found := _ID_IN_MOUNTS.search(mounts):
        candidates.insert(0, found[1])
    for candidate in candidates:
        with unless_missing():
            return await docker.containers.container(candidate).show()
    raise BackendError(
        "the load balancer runs in a container that this Docker Engine does not know: "
        "mount the socket of the engine that runs it"
    )


async def _make(docker: Docker, name: str, labels: dict[str, str]) -> ReplicaNetwork:
    for network in await docker.networks.list(filters={"name": name}):
        if network["Name"] == name:
            return ReplicaNetwork(network["Id"], name, own=(network["Labels"] or {}) == labels)
    made = await docker.networks.create(
        {"Name": name, "Driver": "bridge", "CheckDuplicate": True, "Labels": labels}
    )
    return ReplicaNetwork(made.id, name, own=True)
