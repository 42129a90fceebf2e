"""The published experiment: how the classic rings spread 10,000 requests with random 6-digit ids.

The exact share of each server is that of the ids 100000 … 999999 that reach it. What was published,
and what ids drawn here do, must meet it within four standard deviations of a binomial.
"""

import functools
import math
import random
from collections import Counter
from collections.abc import Mapping

import pytest

from loadbalancer.routing.ring import PRESETS, Ring

IDS = range(100_000, 1_000_000)
REQUESTS = 10_000

PUBLISHED = {
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

rows = pytest.mark.parametrize(
    ("name", "row"), [(name, row) for name, table in PUBLISHED.items() for row in table], ids=str
)


@functools.cache
def ids_by_slot(name: str) -> Counter[int]:
    preset = PRESETS[name]
    return Counter(preset.hash_key(str(request)) % preset.slots for request in IDS)


def exact_share(name: str, ring: Ring) -> dict[int, float]:
    ids: Counter[int] = Counter()
    for slot, count in ids_by_slot(name).items():
        ids[ring.slot_owner(slot)] += count
    return {number: ids[number] / len(IDS) for number in ring.numbers}


def assert_within_noise(counts: Mapping[int, int], shares: Mapping[int, float]) -> None:
    assert sum(counts.values()) == REQUESTS
    for number, share in shares.items():
        deviation = math.sqrt(REQUESTS * share * (1 - share))
        assert abs(counts[number] - REQUESTS * share) <= 4 * deviation, number


@rows
def test_the_published_counts_are_met(name: str, row: list[int]) -> None:
    ring = Ring.build(name, range(1, len(row) + 1))
    assert_within_noise(dict(enumerate(row, 1)), exact_share(name, ring))


@rows
def test_drawn_ids_do_the_same(name: str, row: list[int]) -> None:
    ring = Ring.build(name, range(1, len(row) + 1))
    rng = random.Random(20_26)
    counts = Counter(ring.owner(str(rng.choice(IDS))) for _ in range(REQUESTS))
    assert_within_noise(counts, exact_share(name, ring))
