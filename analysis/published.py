"""The published figures of the coursework: the spread of 10,000 requests with random 6-digit ids.

They were measured with the coursework's own implementation (linear probing). The exact share of each server
follows from the arithmetic of the ring, so each published count must be within the noise of the random ids.
"""

import functools
from collections import Counter

from loadbalancer.routing.ring import PRESETS, Ring

IDS = range(100_000, 1_000_000)
"""All 6-digit ids."""

REQUESTS = 10_000

PUBLISHED: dict[str, list[list[int]]] = {
    "classic": [
        [9531, 469],
        [8341, 468, 1191],
        [8000, 447, 1137, 416],
        [7623, 496, 888, 438, 555],
        [7311, 448, 924, 362, 554, 401],
    ],
    "classic-modified": [
        [4566, 5434],
        [2522, 4354, 3124],
        [2164, 3662, 2212, 1962],
        [1461, 2645, 1963, 1705, 2226],
        [1177, 1823, 1259, 1678, 1927, 2136],
    ],
    "classic-sha256": [
        [3315, 6685],
        [2646, 3235, 4119],
        [1293, 3170, 2197, 3340],
        [1222, 2181, 2180, 2675, 1742],
        [1157, 2150, 2009, 2655, 1570, 459],
    ],
}
"""Requests by server, for each ring and for N = 2 … 6 servers."""


@functools.cache
def _ids_by_slot(name: str) -> Counter[int]:
    preset = PRESETS[name]
    return Counter(preset.hash_key(str(request)) % preset.slots for request in IDS)


def exact_share(name: str, ring: Ring) -> dict[int, float]:
    """The share of all 6-digit ids that hash to each member of a ring, by the member's number.

    Args:
        name: Preset of the ring.
        ring: Ring of that preset.
    """
    ids: Counter[int] = Counter()
    for slot, count in _ids_by_slot(name).items():
        ids[ring.slot_owner(slot)] += count
    return {number: ids[number] / len(IDS) for number in ring.numbers}
