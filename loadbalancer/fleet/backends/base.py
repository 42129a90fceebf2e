"""What a backend is: the few verbs by which the fleet makes replicas run and end.

A backend knows how to run one replica and to tell when it has ended. It knows nothing of heartbeats,
rings or requests, and decides nothing: when to start, stop or replace is the fleet's business.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from loadbalancer.fleet.backends.reasons import with_last_words
from loadbalancer.routing.upstream import authority


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """What a backend is told about the replica to start.

    Args:
        hostname: Its unique name; containers and their network alias are called so.
        number: Its number on the ring, kept with the container so that a later run can adopt it.
    """

    hostname: str
    number: int


@dataclass(eq=False, slots=True)
class Instance:
    """One running incarnation of a replica: a container or a process.

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
    it knows that the instance has ended or is ill beyond help. Never fails, never cancelled by readers."""
    last_words: "asyncio.Future[str]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """Resolved a little later with the last lines of its output, or with nothing."""

    @property
    def address(self) -> str:
        """`host:port`."""
        return authority(self.host, self.port)

    async def why_lost(self, patience: float) -> str:
        """Say why it was lost, with its last words if they become known in time.

        Args:
            patience: Seconds to wait for them.
        """
        await asyncio.wait({self.last_words}, timeout=patience)
        words = self.last_words.result() if self.last_words.done() else ""
        how = await self.lost
        return with_last_words(how, words)


@dataclass(frozen=True, slots=True)
class Found:
    """A replica of this fleet that an earlier run of the load balancer left behind.

    `instance` is None when it has ended since; the fleet then replaces it under its name and number.
    """

    spec: ReplicaSpec
    instance: Instance | None


class Backend(Protocol):
    """Where replicas run. All methods raise `BackendError` with a sentence that says what to do."""

    name: str

    async def open(self) -> None:
        """Connect and check what every start will need (engine, image, network; the command).

        Called once, first. Raises when no replica could ever be started.
        """

    async def close(self) -> None:
        """Release connections and finish what goes on in the background. Stops no replica."""

    def check_name(self, hostname: str) -> None:
        """Refuse a hostname that no replica can bear here.

        Raises:
            BadRequestError: It is too long, or too short; the text says which names are good.
        """

    async def adopt(self) -> list[Found]:
        """List the replicas of this fleet that already exist, and clear away half-made leftovers."""

    async def start(self, spec: ReplicaSpec) -> Instance:
        """Start a replica and return once it has an address; it need not answer there yet.

        Many starts may run at once. On failure or cancellation nothing stays behind.

        Raises:
            BackendError: It could not be started (image missing, name taken, command not found …).
        """

    async def stop(self, instance: Instance, grace: float) -> None:
        """End an instance and clear it away: SIGTERM, at most `grace` seconds of patience, SIGKILL.

        Idempotent: fine if it has ended or been removed by others. May be called again with a
        smaller grace while an earlier call is still waiting, to hurry it.

        Args:
            instance: What `start` or `adopt` returned.
            grace: Seconds between SIGTERM and SIGKILL; 0 kills at once.
        """

    async def discard(self, instance: Instance) -> None:
        """Make way for the replacement of a dead or hung instance, quickly.

        Returns as soon as `start` can reuse the hostname; killing and clearing away what is left goes
        on in the background, owned by the backend, until `close` at the latest. What shows a later run
        that there was such a replica stays until its replacement is there, or until `release`.
        """

    async def release(self, spec: ReplicaSpec) -> None:
        """A replica has left for good: clear away what is left of its earlier instances."""
