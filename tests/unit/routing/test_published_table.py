"""The published experiment: the distribution of 10,000 random 6-digit request ids over the classic rings.

The exact share of a server is the fraction of the ids 100000 … 999999 that it owns. The published counts, and
the counts of ids that are drawn here, must be within four standard deviations of the binomial distribution.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping

import pytest

from analysis.published import IDS, PUBLISHED, REQUESTS, exact_share
from loadbalancer.routing.ring import Ring

rows = pytest.mark.parametrize(
    ("name", "row"), [(name, row) for name, table in PUBLISHED.items() for row in table], ids=str
)


def assert_within_noise(counts: Mapping[int, int], shares: Mapping[int, float]) -> None:
    assert sum(counts.values()) == REQUESTS
    for number, share in shares.items():
        deviation = math.sqrt(REQUESTS * share * (1 - share))
        assert abs(counts[number] - REQUESTS * share) <= 4 * deviation, number


@rows
def test_the_published_counts_agree_with_the_exact_shares(name: str, row: list[int]) -> None:
    ring = Ring.build(name, range(1, len(row) + 1))
    assert_within_noise(dict(enumerate(row, 1)), exact_share(name, ring))


@rows
def test_the_counts_of_drawn_ids_agree_with_the_exact_shares(name: str, row: list[int]) -> None:
    ring = Ring.build(name, range(1, len(row) + 1))
    rng = random.Random(20_26)
    counts = Counter(ring.owner(str(rng.choice(IDS))) for _ in range(REQUESTS))
    assert_within_noise(counts, exact_share(name, ring))
