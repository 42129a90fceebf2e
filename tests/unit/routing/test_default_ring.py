"""The promises of the contract about the `default` ring, measured exactly over every slot."""

import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadbalancer.routing.ring import Ring

SLOTS = 251 * 6000


def owners(ring: Ring) -> list[int]:
    """Return the owner of every slot."""
    held = [slot for slot, mark in enumerate(ring._held) if mark]
    slots = [0] * SLOTS
    begin = 0
    for slot in held:
        slots[begin : slot + 1] = [ring.slot_owner(slot)] * (slot + 1 - begin)
        begin = slot + 1
    slots[begin:] = [ring.slot_owner(held[0])] * (SLOTS - begin)
    return slots


def moves(before: list[int], after: list[int]) -> Counter[tuple[int, int]]:
    """Count the slots that move, by (old owner, new owner)."""
    return Counter((old, new) for old, new in zip(before, after, strict=True) if old != new)


def test_from_2_to_100_members_the_shares_are_even() -> None:
    ring = Ring.build("default", [1])
    for n in range(2, 101):
        ring = ring.changed_to(range(1, n + 1))
        shares = ring.slot_share()
        assert max(shares.values()) * n <= Fraction(103, 100), n
        assert shares[n] <= Fraction(12, 10) / n
    assert ring == Ring.build("default", range(1, 101))


@pytest.mark.parametrize(("n", "peak"), [(200, 1.02), (251, 1.0), (300, 1.02), (500, 1.04), (1000, 1.08)])
def test_the_shares_are_even_beyond_100_members(n: int, peak: float) -> None:
    assert Ring.build("default", range(1, n + 1)).peak_to_mean <= peak


@pytest.mark.parametrize("n", [2, 3, 17, 99, 251, 252, 300])
def test_a_new_last_member_moves_only_its_own_keys(n: int) -> None:
    before = Ring.build("default", range(1, n))
    after = before.changed_to(range(1, n + 1))
    moved = moves(owners(before), owners(after))
    assert {new for _, new in moved} == {n}
    assert Fraction(moved.total(), SLOTS) == after.slot_share()[n] <= Fraction(12, 10) / n


@pytest.mark.parametrize("n", [2, 3, 7, 39, 100, 300])
def test_a_member_that_leaves_or_returns_moves_only_its_own_keys(n: int) -> None:
    whole = Ring.build("default", range(1, n + 1))
    rng = random.Random(n)
    for leaver in rng.sample(range(1, n), min(2, n - 1)):
        without = whole.changed_to(set(whole.numbers) - {leaver})
        moved = moves(owners(without), owners(whole))
        assert {new for _, new in moved} == {leaver}
        assert Fraction(moved.total(), SLOTS) == whole.slot_share()[leaver] <= Fraction(12, 10) / n
        # Its keys are spread over all other members.
        assert without.peak_to_mean <= 1.05


@settings(max_examples=12, deadline=None)
@given(st.sets(st.integers(1, 251), min_size=2, max_size=100), st.data())
def test_gaps_in_the_numbers_make_no_difference(numbers: set[int], data: st.DataObject) -> None:
    ring = Ring.build("default", numbers)
    assert ring.peak_to_mean <= 1.05
    leaver = data.draw(st.sampled_from(sorted(numbers)))
    moved = moves(owners(ring), owners(ring.changed_to(numbers - {leaver})))
    assert {old for old, _ in moved} == {leaver}


@settings(max_examples=8, deadline=None)
@given(st.sets(st.integers(1, 1004), min_size=2, max_size=100), st.data())
def test_members_that_share_home_slots_move_only_their_own_keys(
    numbers: set[int], data: st.DataObject
) -> None:
    ring = Ring.build("default", numbers)
    leaver = data.draw(st.sampled_from(sorted(numbers)))
    moved = moves(owners(ring), owners(ring.changed_to(numbers - {leaver})))
    assert {old for old, _ in moved} == {leaver}


def test_keys_are_distributed_like_the_slots() -> None:
    ring = Ring.build("default", range(1, 11))
    counts = Counter(ring.owner(f"user-{key}") for key in range(50_000))
    for number, share in ring.slot_share().items():
        mean = float(50_000 * share)
        assert abs(counts[number] - mean) <= 5 * mean**0.5
