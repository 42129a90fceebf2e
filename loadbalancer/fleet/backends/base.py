"""The interface of a backend: the operations by which the fleet starts and stops replicas.

A backend runs replicas, and tells when one has ended. It does not know heartbeats, rings or requests. The
fleet decides when a replica is started, stopped or replaced.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from loadbalancer.fleet.backends.reasons import with_last_words
from loadbalancer.routing.upstream import authority


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """Describes a replica to the backend that starts it.

    Args:
        hostname: The unique name of the replica, and of its container and network alias.
        number: The ring number. The backend keeps it with the container, so that a later run can adopt it.
    """

    hostname: str
    number: int


@dataclass(eq=False, slots=True)
class Instance:
    """One container or process that runs as a replica.

    Args:
        id: The container id or the process id, as text.
        host: Address at which it serves HTTP.
        port: Port at which it serves HTTP.
    """

    id: str
    host: str
    port: int
    lost: "asyncio.Future[str]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Resolved by the backend, with the reason in words (exit code, signal, out of memory), as soon as
    it knows that the instance has ended or is unhealthy. It never fails, and readers never cancel it."""
    last_words: "asyncio.Future[str]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """Resolved a little later with the last lines of the output, or with an empty text."""

    @property
    def address(self) -> str:
        """`host:port`."""
        return authority(self.host, self.port)

    async def why_lost(self, patience: float) -> str:
        """Return why the instance was lost, with its last output if that becomes known in time.

        Args:
            patience: Seconds to wait for the last output.
        """
        await asyncio.wait({self.last_words}, timeout=patience)
        words = self.last_words.result() if self.last_words.done() else ""
        how = await self.lost
        return with_last_words(how, words)


@dataclass(frozen=True, slots=True)
class Found:
    """A replica of this fleet that an earlier run of the load balancer has left.

    Args:
        spec: The hostname and the ring number.
        instance: None if the replica has ended since. The fleet then replaces it.
    """

    spec: ReplicaSpec
    instance: Instance | None


class Backend(Protocol):
    """Runs replicas. All methods raise `BackendError` with a sentence that says what to do."""

    name: str

    async def open(self) -> None:
        """Connect, and check everything that a start needs (engine, image, network; the command).

        The fleet calls it once, before anything else.

        Raises:
            BackendError: No replica can be started here.
        """

    async def close(self) -> None:
        """Finish the work in the background, and close all connections. Stops no replica."""

    def check_name(self, hostname: str) -> None:
        """Check that a replica can have a hostname.

        Raises:
            BadRequestError: The name is too long or too short; the text says which names are allowed.
        """

    async def adopt(self) -> list[Found]:
        """List the replicas of this fleet that exist already, and remove unusable leftovers."""

    async def start(self, spec: ReplicaSpec) -> Instance:
        """Start a replica, and return once it has an address. It need not answer there yet.

        Several starts may run at the same time. A start that fails or is cancelled leaves nothing behind.

        Raises:
            BackendError: The replica could not be started (image missing, name taken, command not found …).
        """

    async def stop(self, instance: Instance, grace: float) -> None:
        """Stop an instance and remove it: SIGTERM, then SIGKILL after the grace.

        An instance that has ended or was removed by somebody else is no error. While one call waits, another
        call with a smaller grace may shorten it. A call that is cancelled may be repeated.

        Args:
            instance: An instance that `start` or `adopt` has returned.
            grace: Seconds between SIGTERM and SIGKILL; 0: SIGKILL at once.
        """

    async def discard(self, instance: Instance) -> None:
        """Make the hostname of a dead or hung instance free for its replacement.

        Returns as soon as `start` can use the hostname again. The backend kills and removes the instance in
        the background, and `close` waits for that. A record of the replica, which a later run can find, stays
        until the replacement runs or `remove_leftovers` is called.
        """

    async def remove_leftovers(self, spec: ReplicaSpec) -> None:
        """Remove the remains of earlier instances of a replica that has left the fleet."""
