"""The frozen picture of the fleet that the data path reads.

The fleet publishes a new snapshot whenever a replica enters or leaves the rotation, in one
assignment. A request takes the snapshot that is current, picks from it and never waits: no lock, no
await. Requests that began under an older snapshot keep the upstream that they hold.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from loadbalancer.routing.policies import Policy
from loadbalancer.routing.upstream import Upstream


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The upstreams in rotation, in the order of their ring numbers, and the policy built over them."""

    upstreams: tuple[Upstream, ...]
    policy: Policy

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Choose the upstream of a request; None when none is left.

        Args:
            key: What the request is hashed on.
            tried: Upstreams that this request has already failed on.
        """
        return self.policy.pick(key, tried)


class SnapshotSource(Protocol):
    """Whoever publishes snapshots: read `snapshot` anew for each request."""

    @property
    def snapshot(self) -> Snapshot:
        """The current snapshot."""
