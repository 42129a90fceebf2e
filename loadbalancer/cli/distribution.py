"""The distribution of requests over replicas by a ring, for the command `ring`."""

import random
from dataclasses import asdict, dataclass
from typing import Any

from loadbalancer.routing.ring import Ring


@dataclass(frozen=True)
class Distribution:
    """The requests that each replica gets for random request ids, and its exact share of the slots."""

    ring: str
    slots: int
    virtual_servers: int
    replicas: int
    requests: int
    counts: dict[str, int]
    peak_to_mean: float
    slot_share: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain values, in the order of the fields."""
        return asdict(self)


def draw_ids(count: int, seed: int) -> list[str]:
    """Draw random 6-digit request ids.

    Args:
        count: The number of ids.
        seed: The seed of the random numbers.
    """
    rng = random.Random(seed)
    return [str(rng.randint(100_000, 999_999)) for _ in range(count)]


def draw(ring_name: str, replicas: int, requests: int, seed: int) -> Distribution:
    """Distribute random 6-digit request ids over the replicas Server-1 … Server-N.

    Args:
        ring_name: A preset of the ring.
        replicas: N, at least 1.
        requests: The number of request ids, at least 1.
        seed: The seed of the random numbers.

    Raises:
        ValueError: There is no such preset, or it has too few slots for N replicas.
    """
    ring = Ring.build(ring_name, range(1, replicas + 1))
    by_number = dict.fromkeys(ring.numbers, 0)
    for request_id in draw_ids(requests, seed):
        by_number[ring.owner(request_id)] += 1
    return Distribution(
        ring=ring_name,
        slots=ring.slots,
        virtual_servers=ring.virtual_servers,
        replicas=replicas,
        requests=requests,
        counts={f"Server-{number}": count for number, count in by_number.items()},
        peak_to_mean=max(by_number.values()) * replicas / requests,
        slot_share={f"Server-{number}": float(share) for number, share in ring.slot_share().items()},
    )
