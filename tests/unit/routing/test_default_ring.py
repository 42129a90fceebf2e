"""What the contract promises of the `default` ring, measured exactly over every slot."""

import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadbalancer.routing.ring import Ring

SLOTS = 1 << 20


def owners(ring: Ring) -> bytes:
    """The owner of every slot, a byte each: a million slots are compared in one step, not in a million."""
    return ring._owners.translate(bytes([0, *ring.numbers, *[0] * (255 - len(ring.numbers))]))


def moves(before: bytes, after: bytes) -> Counter[tuple[int, int]]:
    """Slots by (old owner, new owner), where they differ."""
    differ = int.from_bytes(before, "little") ^ int.from_bytes(after, "little")
    if not differ:
        return Counter()
    changed = differ.to_bytes(SLOTS, "little")
    return Counter((old, new) for old, new, change in zip(before, after, changed, strict=True) if change)


def others_that_moved(before: bytes, after: bytes, one: int) -> int:
    """A number whose set bits are the differences at slots where neither owner is `one`."""
    mask = bytes(0 if number == one else 0xFF for number in range(256))
    others = int.from_bytes(before.translate(mask), "little") & int.from_bytes(
        after.translate(mask), "little"
    )
    return (int.from_bytes(before, "little") ^ int.from_bytes(after, "little")) & others


def test_from_2_to_100_members_the_shares_are_even_and_only_what_must_move_moves() -> None:
    ring = Ring.build("default", [1])
    before = owners(ring)
    for n in range(2, 101):
        ring = ring.changed_to(range(1, n + 1))
        shares = ring.slot_share()
        assert max(shares.values()) * n <= Fraction(105, 100), n
        # The last one's coming, and, the other way round, its going, move exactly what it owns.
        after = owners(ring)
        assert not others_that_moved(before, after, one=n), n
        assert n not in before
        assert shares[n] <= Fraction(12, 10) / n
        before = after
    assert ring == Ring.build("default", range(1, 101))


@pytest.mark.parametrize("n", [2, 3, 7, 39, 100])
def test_whoever_leaves_or_comes_back_moves_only_its_own_keys(n: int) -> None:
    whole = Ring.build("default", range(1, n + 1))
    rng = random.Random(n)
    for leaver in rng.sample(range(1, n), min(2, n - 1)):
        without = whole.changed_to(set(whole.numbers) - {leaver})
        moved = moves(owners(without), owners(whole))
        assert {new for _, new in moved} == {leaver}
        assert Fraction(moved.total(), SLOTS) == whole.slot_share()[leaver] <= Fraction(12, 10) / n
        # What it leaves behind is spread over the others, not heaped upon one.
        assert without.peak_to_mean <= 1.05


@settings(max_examples=12, deadline=None)
@given(st.sets(st.integers(1, 128), min_size=2, max_size=30), st.data())
def test_gaps_in_the_numbers_change_nothing_of_that(numbers: set[int], data: st.DataObject) -> None:
    ring = Ring.build("default", numbers)
    assert ring.peak_to_mean <= 1.05
    leaver = data.draw(st.sampled_from(sorted(numbers)))
    without = ring.changed_to(numbers - {leaver})
    assert not others_that_moved(owners(ring), owners(without), one=leaver)


def test_real_keys_spread_like_the_slots() -> None:
    ring = Ring.build("default", range(1, 11))
    counts = Counter(ring.owner(f"user-{key}") for key in range(50_000))
    for number, share in ring.slot_share().items():
        mean = float(50_000 * share)
        assert abs(counts[number] - mean) <= 5 * mean**0.5
