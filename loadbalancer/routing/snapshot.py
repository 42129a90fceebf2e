"""The frozen picture of the fleet that the data path reads.

The fleet publishes a new snapshot whenever a replica enters or leaves the rotation, in one
assignment. A request takes the snapshot that is current, picks from it and never waits: no lock, no
await. Requests that began under an older snapshot keep the upstream that they hold.
"""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from loadbalancer.routing.policies import Policy, make_policy
from loadbalancer.routing.ring import Ring
from loadbalancer.routing.upstream import Upstream


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The upstreams in rotation, in the order of their ring numbers, and the policy built over them."""

    upstreams: tuple[Upstream, ...]
    policy: Policy
    rng: random.Random = field(default_factory=random.Random)

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Choose the upstream of a request; None when none is left.

        Args:
            key: What the request is hashed on.
            tried: Upstreams that this request has already failed on.
        """
        upstream = self.policy.pick(key, tried)
        if upstream is None or upstream.share >= 1.0 or self.rng.random() < upstream.share:
            return upstream
        # One that has just recovered leaves some of its requests to the next.
        return self.policy.pick(key, {*tried, upstream}) or upstream


def snapshot_maker(
    policy: str, ring: str, load_factor: float, rng: random.Random
) -> Callable[[Sequence[Upstream]], Snapshot]:
    """What builds one snapshot after the other.

    Args:
        policy: As in the option `--policy`.
        ring: As in the option `--ring`.
        load_factor: Bound of a replica's load relative to the mean, 0 for none.
        rng: Source of random choices.
    """
    # Each ring is made from the one before: that costs a fraction of building it anew.
    present = Ring.build(ring, ())

    def make(upstreams: Sequence[Upstream]) -> Snapshot:
        nonlocal present
        if policy == "consistent-hash":
            present = present.changed_to(upstream.number for upstream in upstreams)
        chooser = make_policy(policy, upstreams, ring=present, load_factor=load_factor, rng=rng)
        return Snapshot(tuple(upstreams), chooser, rng)

    return make


class SnapshotSource(Protocol):
    """Whoever publishes snapshots: read `snapshot` anew for each request."""

    @property
    def snapshot(self) -> Snapshot:
        """The current snapshot."""

    @property
    def hopeful(self) -> bool:
        """Whether there will be a replica in rotation by and by."""

    async def next_snapshot(self) -> None:
        """Return when another snapshot has been published."""
