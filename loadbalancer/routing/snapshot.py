"""A snapshot: the upstreams in rotation and the policy, frozen for the data path.

The fleet publishes a new snapshot, in one assignment, whenever a replica enters or leaves the rotation. A
request picks from the current snapshot without a lock and without waiting. A request that has picked from an
older snapshot keeps its upstream.
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
    """The upstreams in rotation, in the order of their ring numbers, and the policy for them."""

    upstreams: tuple[Upstream, ...]
    policy: Policy
    rng: random.Random = field(default_factory=random.Random)

    def pick(self, key: str, tried: Collection[Upstream] = ()) -> Upstream | None:
        """Choose the upstream of a request, or None if no upstream is left.

        Args:
            key: The key of the request.
            tried: Upstreams on which this request has failed.
        """
        upstream = self.policy.pick(key, tried)
        if upstream is None or upstream.share >= 1.0 or self.rng.random() < upstream.share:
            return upstream
        # During a slow start, an upstream leaves a part of its requests to the next one.
        return self.policy.pick(key, {*tried, upstream}) or upstream


def snapshot_maker(
    policy: str, ring: str, load_factor: float, rng: random.Random
) -> Callable[[Sequence[Upstream]], Snapshot]:
    """Return a function that makes the snapshot for a sequence of upstreams.

    Args:
        policy: A value of the option `--policy`.
        ring: A value of the option `--ring`.
        load_factor: The maximum load of an upstream relative to the mean; 0: unlimited.
        rng: The source of random choices.
    """
    # Changing the previous ring costs a fraction of building a new one.
    current = Ring.build(ring, ())

    def make(upstreams: Sequence[Upstream]) -> Snapshot:
        nonlocal current
        if policy == "consistent-hash":
            current = current.changed_to(upstream.number for upstream in upstreams)
        chosen = make_policy(policy, upstreams, ring=current, load_factor=load_factor, rng=rng)
        return Snapshot(tuple(upstreams), chosen, rng)

    return make


class SnapshotSource(Protocol):
    """The publisher of snapshots. Each request reads `snapshot` anew."""

    @property
    def snapshot(self) -> Snapshot:
        """The current snapshot."""

    @property
    def expects_upstream(self) -> bool:
        """Whether an upstream is expected to enter the rotation soon, so that a request may wait for it."""

    async def next_snapshot(self) -> None:
        """Return when the next snapshot has been published."""
