"""Properties of all rings and of the classic rings. `test_default_ring` measures the default ring."""

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Collection, Iterator
from fractions import Fraction
from itertools import compress, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadbalancer.routing.hashing import hash_pair
from loadbalancer.routing.placement import Probing, linear, quadratic, slots_of
from loadbalancer.routing.ring import PRESETS, Ring, RingFullError, RingPreset, capacity

CLASSIC = ["classic", "classic-modified", "classic-sha256"]

probings = st.sampled_from([linear, quadratic])
keys = st.text(max_size=30) | st.integers(0, 10**21).map(str)


def members(most: int = 20) -> st.SearchStrategy[set[int]]:
    return st.sets(st.integers(1, 120), min_size=1, max_size=most)


MANY = st.sets(st.integers(1, 12) | st.integers(245, 260) | st.integers(500, 1004), min_size=1, max_size=8)
"""Members of the default ring, with and without shared home slots."""


def members_of(name: str) -> st.SearchStrategy[set[int]]:
    return MANY if name == "default" else members(56)


@st.composite
def rings(draw: st.DrawFn) -> tuple[str, set[int], Probing]:
    """Draw a preset, members and a probing; the default preset less often, because it takes longer."""
    name = draw(st.sampled_from([*CLASSIC * 3, "default"]))
    return name, draw(members_of(name)), draw(probings)


def placement(preset: RingPreset, numbers: Collection[int], probing: Probing) -> dict[int, tuple[int, int]]:
    """Build the ring directly from the definition: slot → (i, j)."""
    held: dict[int, tuple[int, int]] = {}
    if preset.hash_point is None:
        return in_strata(numbers)
    for i in sorted(numbers):
        for j in range(1, preset.virtual_servers + 1):
            home = preset.hash_point(i, j) % preset.slots
            held[next(slot for slot in probing(home, preset.slots) if slot not in held)] = (i, j)
    return held


def draws(number: int, which: int) -> list[int]:
    """Draw a number below 2¹⁶ for each stratum."""
    digest = hashlib.shake_128(f"{number} {which}".encode()).digest(12_000)
    return [int.from_bytes(digest[i : i + 2], "little") for i in range(0, 12_000, 2)]


def in_strata(numbers: Collection[int]) -> dict[int, tuple[int, int]]:
    """Build the default ring: each slot is held by the first of the members that have it as home slot."""
    wanting: dict[int, list[tuple[int, int, int]]] = {}
    for number in numbers:
        if number > 251:
            places = [draw % 251 for draw in draws(number, 0)]
            ranks = [number if draw < (251 << 16) // number else -number for draw in draws(number, 1)]
        else:
            places = []
            for order in range(24):
                mine = hash_pair(number, order)
                start = sum(hash_pair(other, order) < mine for other in range(1, 252))
                # The place x for which step · x = start modulo 251, by Fermat's little theorem.
                places += [start * pow(step, 249, 251) % 251 for step in range(1, 251)]
            ranks = [0] * 6000
        for j, (place, rank) in enumerate(zip(places, ranks, strict=True)):
            wanting.setdefault(251 * j + place, []).append((rank, number, j + 1))
    return {slot: max(those)[1:] for slot, those in wanting.items()}


def heads_from(held: dict[int, tuple[int, int]], start: int) -> Iterator[tuple[int, int]]:
    """Yield the virtual servers clockwise from a slot."""
    yield from (held[slot] for slot in sorted(slot for slot in held if slot >= start))
    yield from (held[slot] for slot in sorted(slot for slot in held if slot < start))


def holders(ring: Ring) -> list[tuple[int, int]]:
    """Return every held slot and its member."""
    return [(slot, ring.slot_owner(slot)) for slot in compress(range(ring.slots), ring._held)]


def same(one: Ring, other: Ring) -> bool:
    return one == other and holders(one) == holders(other)


def slot_owners(ring: Ring) -> list[int]:
    return [ring.slot_owner(slot) for slot in range(ring.slots)]


@settings(max_examples=60, deadline=None)
@given(rings(), st.lists(keys, min_size=1, max_size=5))
def test_every_key_has_the_owner_of_the_definition(
    spec: tuple[str, set[int], Probing], some_keys: list[str]
) -> None:
    name, numbers, probing = spec
    ring = Ring.build(name, numbers, probing)
    held = placement(ring.preset, numbers, probing)
    for key in some_keys:
        met = [i for i, _ in heads_from(held, ring.preset.hash_key(key) % ring.slots)]
        assert ring.owner(key) == met[0]
        assert list(ring.walk(key)) == list(dict.fromkeys(met))


@settings(max_examples=60, deadline=None)
@given(rings(), keys)
def test_a_walk_yields_every_member_once_and_the_owner_first(
    spec: tuple[str, set[int], Probing], key: str
) -> None:
    ring = Ring.build(*spec)
    walk = list(ring.walk(key))
    assert walk[0] == ring.owner(key)
    assert sorted(walk) == sorted(spec[1])


@settings(max_examples=60, deadline=None)
@given(rings(), st.randoms(use_true_random=False))
def test_the_order_of_the_members_makes_no_difference(
    spec: tuple[str, set[int], Probing], rng: random.Random
) -> None:
    name, numbers, probing = spec
    shuffled = [*numbers, *numbers]
    rng.shuffle(shuffled)
    assert Ring.build(name, numbers, probing) == Ring.build(name, shuffled, probing)


@settings(max_examples=60, deadline=None)
@given(rings(), st.data())
def test_a_member_that_leaves_and_returns_restores_the_ring(
    spec: tuple[str, set[int], Probing], data: st.DataObject
) -> None:
    name, numbers, probing = spec
    before = Ring.build(name, numbers, probing)
    leaver = data.draw(st.sampled_from(sorted(numbers)))
    without = before.changed_to(numbers - {leaver})
    assert leaver not in without.numbers
    assert without != before
    assert without.changed_to(numbers) == before


@settings(max_examples=40, deadline=None)
@given(rings(), st.data())
def test_a_changed_ring_equals_a_new_ring_of_the_same_members(
    spec: tuple[str, set[int], Probing], data: st.DataObject
) -> None:
    ring = Ring.build(*spec)
    for _ in range(data.draw(st.integers(1, 4))):
        numbers = set(ring.numbers) ^ data.draw(members_of(spec[0]))
        ring.owner(data.draw(keys)) if ring.numbers else None  # a change must not copy cached owners
        ring = ring.changed_to(numbers)
        assert same(ring, Ring.build(spec[0], numbers, spec[2]))


@settings(max_examples=10, deadline=None)
@given(st.sets(st.integers(200, 300), min_size=30, max_size=80), st.data())
def test_single_changes_give_the_same_ring_as_one_change_with_shared_home_slots(
    numbers: set[int], data: st.DataObject
) -> None:
    ring = Ring.build("default", numbers)
    for change in data.draw(st.lists(st.integers(200, 300), min_size=1, max_size=5)):
        ring = ring.changed_to(set(ring.numbers) ^ {change})
    assert same(ring, Ring.build("default", ring.numbers))


@settings(max_examples=20, deadline=None)
@given(MANY, st.lists(keys, min_size=1, max_size=50))
def test_cached_owners_change_no_answer(numbers: set[int], some_keys: list[str]) -> None:
    asked, fresh = Ring.build("default", numbers), Ring.build("default", numbers)
    first = [asked.owner(key) for key in some_keys]
    assert [asked.owner(key) for key in reversed(some_keys)] == first[::-1]
    assert same(asked, fresh)
    assert [next(fresh.walk(key)) for key in some_keys] == first


@settings(max_examples=60, deadline=None)
@given(rings())
def test_slot_shares_are_exact_and_sum_to_one(spec: tuple[str, set[int], Probing]) -> None:
    ring = Ring.build(*spec)
    shares = ring.slot_share()
    assert list(shares) == sorted(spec[1])
    assert sum(shares.values()) == 1
    assert ring.peak_to_mean == float(max(shares.values()) * len(shares))
    if ring.slots == 512:
        owners = slot_owners(ring)
        assert shares == {number: Fraction(owners.count(number), 512) for number in shares}


def test_the_members_up_to_251_have_different_home_slots_in_every_stratum() -> None:
    wanted = [slots_of(number) for number in range(1, 252)]
    for stratum, slots in enumerate(zip(*wanted, strict=True)):
        assert sorted(slots) == list(range(251 * stratum, 251 * (stratum + 1)))


DIGESTS = {
    "classic": "1b38adbab2a5203c",
    "classic-modified": "aefda0f4408f196f",
    "classic-sha256": "d178e17f180791d3",
    "default": "54b6f8b849b401ae",
    "contended": "6b0ead303ca344a0",
}
"""SHA-256 of the rings of members 1 … 7, and of one with shared home slots, as computed by `DIGEST`.

A change here moves keys at an upgrade.
"""

DIGEST = """
import hashlib
from loadbalancer.routing.ring import PRESETS, Ring
for name in PRESETS:
    ring = Ring.build(name, range(1, 8))
    print(name, hashlib.sha256(bytes(map(ring.slot_owner, range(ring.slots)))).hexdigest()[:16])
ring = Ring.build("default", [1, 5, 300, 301, 999])
owners = ",".join(str(ring.slot_owner(slot)) for slot in range(ring.slots))
print("contended", hashlib.sha256(owners.encode()).hexdigest()[:16])
"""


@pytest.mark.parametrize("seed", ["0", "12345"])
def test_every_process_builds_the_same_ring_with_any_hash_seed(seed: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    run = subprocess.run(
        [sys.executable, "-c", DIGEST],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert dict(line.split() for line in run.stdout.splitlines()) == DIGESTS


def test_a_ring_without_members_has_no_owners() -> None:
    for name in PRESETS:
        ring = Ring.build(name, [])
        assert (ring.slot_share(), ring.peak_to_mean, list(ring.walk("a"))) == ({}, 0.0, [])
        with pytest.raises(IndexError):
            ring.owner("a")


def test_one_member_owns_everything() -> None:
    for name in PRESETS:
        ring = Ring.build(name, [5])
        assert ring.slot_share() == {5: 1}
        assert ring.peak_to_mean == 1.0
        assert {ring.owner(str(key)) for key in range(1000)} == {5}


@pytest.mark.parametrize("probing", [linear, quadratic])
@pytest.mark.parametrize("name", CLASSIC)
def test_a_classic_ring_has_at_most_56_members(name: str, probing: Probing) -> None:
    assert capacity(name) == 512 // 9 == 56
    full = Ring.build(name, range(1, 57), probing)
    assert min(full.slot_share().values()) >= Fraction(9, 512)
    with pytest.raises(RingFullError, match="no slots left for 57 replicas"):
        Ring.build(name, range(1, 58), probing)


def test_the_default_ring_has_at_most_1000_members() -> None:
    assert capacity("default") == 1000
    with pytest.raises(RingFullError, match="no slots left for 1001 replicas"):
        Ring.build("default", range(1, 1002))


def test_the_capacity_limits_the_number_of_members_not_their_numbers() -> None:
    ring = Ring.build("default", [1, 65_535])
    assert ring.numbers == (1, 65_535)
    assert ring.peak_to_mean <= 1.05


@pytest.mark.parametrize("numbers", [[0], [-1, 2], [1, 1 << 16]])
def test_a_number_out_of_range_is_refused(numbers: list[int]) -> None:
    with pytest.raises(ValueError, match="ring numbers"):
        Ring.build("classic", numbers)


def test_an_unknown_preset_is_named() -> None:
    for use in (capacity, lambda name: Ring.build(name, [1])):
        with pytest.raises(ValueError, match="'oval'"):
            use("oval")


def test_the_presets_are_those_of_the_contract() -> None:
    assert {name: (preset.slots, preset.virtual_servers) for name, preset in PRESETS.items()} == {
        "classic": (512, 9),
        "classic-modified": (512, 9),
        "classic-sha256": (512, 9),
        "default": (6000 * 251, 6000),
    }


def test_linear_probing_tries_every_slot_once_from_the_home_slot() -> None:
    assert list(islice(linear(509, 512), 5)) == [509, 510, 511, 0, 1]
    assert sorted(linear(100, 512)) == list(range(512))


def test_quadratic_probing_tries_squares_and_then_every_slot() -> None:
    assert list(islice(quadratic(500, 512), 5)) == [500, 501, 504, 509, 4]
    squares = {step * step % 512 for step in range(512)}
    tried = list(quadratic(0, 512))
    assert set(tried[: 512 // 2 + 1]) == squares
    assert len(squares) < 512 // 5
    assert set(tried) == set(range(512))


@pytest.mark.parametrize(("probing", "slot"), [(linear, 51), (quadratic, 53)])
def test_a_virtual_server_whose_home_slot_is_taken_probes_for_a_free_slot(
    probing: Probing, slot: int
) -> None:
    # Computed by hand: Φ(4, 2) = 16 + 4 + 4 + 25 = 49 is Φ(3, 3) = 9 + 9 + 6 + 25; 50 is Φ(1, 4) = 1 + 16 + 8
    # + 25.
    ring = Ring.build("classic", [1, 3, 4], probing)
    occupied = [taken for taken in range(45, 56) if ring._held[taken]]
    assert occupied == [49, 50, slot]
    assert [ring.slot_owner(taken) for taken in occupied] == [3, 1, 4]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(CLASSIC), members(55), probings, st.data())
def test_the_last_member_of_a_classic_ring_moves_only_its_own_keys(
    name: str, numbers: set[int], probing: Probing, data: st.DataObject
) -> None:
    last = data.draw(st.integers(max(numbers) + 1, 200))
    before = slot_owners(Ring.build(name, numbers, probing))
    after = slot_owners(Ring.build(name, {*numbers, last}, probing))
    assert all(new in (old, last) for old, new in zip(before, after, strict=True))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CLASSIC), st.sets(st.integers(1, 60), min_size=2, max_size=56), st.data())
def test_in_a_classic_ring_other_keys_move_only_where_a_displaced_virtual_server_moved(
    name: str, numbers: set[int], data: st.DataObject
) -> None:
    preset = PRESETS[name]
    point = preset.hash_point
    assert point is not None
    leaver = data.draw(st.sampled_from(sorted(numbers)))
    before, after = placement(preset, numbers, linear), placement(preset, numbers - {leaver}, linear)
    was, now = ({server: slot for slot, server in held.items()} for held in (before, after))
    moved = {server for server in now if now[server] != was[server]}

    def displacement(server: tuple[int, int], slot: int) -> int:
        return (slot - point(*server)) % preset.slots

    for server in moved:
        assert server[0] > leaver
        assert displacement(server, now[server]) < displacement(server, was[server])
    old = slot_owners(Ring.build(name, numbers))
    new = slot_owners(Ring.build(name, numbers - {leaver}))
    for slot in range(preset.slots):
        if old[slot] not in (leaver, new[slot]):
            assert {next(heads_from(before, slot)), next(heads_from(after, slot))} & moved
