"""Each policy: its picks, their proportions, and that it never picks a tried upstream."""

import random
from collections import Counter
from fractions import Fraction
from math import ceil
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadbalancer.routing.policies import (
    ConsistentHash,
    LeastConnections,
    Policy,
    PowerOfTwoChoices,
    Random,
    RoundRobin,
    SmoothWeightedRoundRobin,
    make_policy,
)
from loadbalancer.routing.ring import Ring
from loadbalancer.routing.upstream import Upstream
from loadbalancer.settings import Settings

NAMES = get_args(Settings.model_fields["policy"].annotation)


def make_upstreams(n: int, weights: list[int] | None = None) -> list[Upstream]:
    return [
        Upstream(f"Server-{i}", i, "127.0.0.1", 40_000 + i, weight)
        for i, weight in enumerate(weights or [1] * n, 1)
    ]


def make(name: str, upstreams: list[Upstream], load_factor: float = 1.25, seed: int = 1) -> Policy:
    ring = Ring.build("classic-sha256", [upstream.number for upstream in upstreams])
    return make_policy(name, upstreams, ring=ring, load_factor=load_factor, rng=random.Random(seed))


def consistent_hash(upstreams: list[Upstream], load_factor: float) -> ConsistentHash:
    return ConsistentHash(upstreams, Ring.build("classic-sha256", [u.number for u in upstreams]), load_factor)


every_policy = pytest.mark.parametrize("name", NAMES)


@every_policy
def test_a_pick_without_upstreams_is_none(name: str) -> None:
    assert make(name, []).pick("key") is None


@every_policy
@settings(max_examples=40, deadline=None)
@given(
    loads=st.lists(st.integers(0, 50), min_size=1, max_size=12),
    key=st.text(max_size=8),
    load_factor=st.sampled_from([0.0, 1.0, 1.25, 2.0]),
    data=st.data(),
)
def test_every_untried_upstream_is_picked_and_no_tried_one(
    name: str, loads: list[int], key: str, load_factor: float, data: st.DataObject
) -> None:
    upstreams = make_upstreams(len(loads))
    for upstream, load in zip(upstreams, loads, strict=True):
        upstream.add_in_flight(load)
    policy = make(name, upstreams, load_factor)
    tried = data.draw(st.lists(st.sampled_from(upstreams), unique=True))
    left = len(upstreams) - len(tried)
    for _ in range(left):
        picked = policy.pick(key, tried)
        assert picked is not None
        assert picked not in tried
        tried.append(picked)
    assert policy.pick(key, tried) is None


@every_policy
def test_tried_upstreams_of_an_older_snapshot_have_no_effect(name: str) -> None:
    upstreams = make_upstreams(3)
    assert make(name, upstreams).pick("key", make_upstreams(3)) in upstreams


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(ValueError, match="'best'"):
        make("best", [])


# Consistent hashing


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.text(max_size=8))
def test_a_key_goes_to_its_owner_and_after_failures_to_the_next_clockwise(n: int, key: str) -> None:
    upstreams = make_upstreams(n)
    ring = Ring.build("classic-sha256", range(1, n + 1))
    policy = ConsistentHash(upstreams, ring, 1.25)
    tried: list[Upstream] = []
    while upstream := policy.pick(key, tried):
        tried.append(upstream)
    assert [upstream.number for upstream in tried] == list(ring.walk(key))


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(1, 12),
    load_factor=st.sampled_from([1.0, 1.1, 1.25, 1.5, 2.0, 10.0]),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=150),
    data=st.data(),
)
def test_no_pick_exceeds_the_bound(
    n: int, load_factor: float, steps: list[tuple[bool, int]], data: st.DataObject
) -> None:
    upstreams = make_upstreams(n)
    ring = Ring.build("classic-sha256", range(1, n + 1))
    policy = ConsistentHash(upstreams, ring, load_factor)
    in_flight: list[Upstream] = []
    for acquire, number in steps:
        if not acquire and in_flight:
            in_flight.pop(data.draw(st.integers(0, len(in_flight) - 1))).release()
            continue
        key = str(number)  # few keys, each with many requests
        bound = ceil(Fraction(str(load_factor)) * (len(in_flight) + 1) / n)
        room = [i for i in ring.walk(key) if upstreams[i - 1].in_flight < bound]
        upstream = policy.pick(key)
        assert upstream is not None
        assert upstream.number == room[0]
        upstream.acquire()
        in_flight.append(upstream)
        assert upstream.in_flight <= bound


def test_the_requests_of_one_key_are_spread_when_its_owner_is_full() -> None:
    upstreams = make_upstreams(4)
    policy = consistent_hash(upstreams, 1.25)
    for _ in range(400):
        upstream = policy.pick("hot")
        assert upstream is not None
        upstream.acquire()
    counts = sorted(upstream.in_flight for upstream in upstreams)
    assert counts[-1] == 125
    assert sum(counts) == 400


def test_a_load_factor_of_zero_is_unlimited() -> None:
    upstreams = make_upstreams(5)
    policy = consistent_hash(upstreams, 0)
    owner = policy.pick("key")
    assert owner is not None
    owner.add_in_flight(1000)
    assert policy.pick("key") is owner


def test_the_bound_has_no_rounding_error() -> None:
    # 1.1 × 10 is 11. As floating-point numbers, it is a little more.
    upstreams = make_upstreams(10)
    policy = consistent_hash(upstreams, 1.1)
    owner, *others = (
        upstreams[number - 1] for number in Ring.build("classic-sha256", range(1, 11)).walk("k")
    )
    owner.add_in_flight(11)
    for other, load in zip(others, [10] * 8 + [8], strict=True):
        other.add_in_flight(load)
    assert sum(upstream.in_flight for upstream in upstreams) + 1 == 100
    assert policy.pick("k") is others[0]
    owner.add_in_flight(-1)
    others[0].add_in_flight(1)
    assert policy.pick("k") is owner


@pytest.mark.parametrize("load_factor", [-1, 0.5, 0.999])
def test_an_impossible_load_factor_is_refused(load_factor: float) -> None:
    with pytest.raises(ValueError, match="load factor"):
        consistent_hash(make_upstreams(2), load_factor)


def test_ring_numbers_may_have_gaps() -> None:
    upstreams = [Upstream("a", 7, "127.0.0.1", 1), Upstream("b", 3, "127.0.0.1", 2)]
    policy = make("consistent-hash", upstreams)
    assert {policy.pick(str(key)) for key in range(100)} == set(upstreams)


# Round robin, smooth and plain


def test_round_robin_picks_each_upstream_in_turn() -> None:
    upstreams = make_upstreams(3)
    policy = RoundRobin(upstreams)
    assert [policy.pick("") for _ in range(7)] == [*upstreams, *upstreams, upstreams[0]]


def test_round_robin_skips_tried_upstreams() -> None:
    one, two, three = upstreams = make_upstreams(3)
    policy = RoundRobin(upstreams)
    assert [policy.pick("", [two]) for _ in range(4)] == [one, three, one, three]


def test_smooth_weighted_round_robin_gives_the_sequence_of_nginx() -> None:
    a, b, c = upstreams = make_upstreams(3, [5, 1, 1])
    policy = SmoothWeightedRoundRobin(upstreams)
    assert [policy.pick("") for _ in range(14)] == [a, a, b, a, c, a, a] * 2


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_smooth_weighted_round_robin_is_proportional_and_even(weights: list[int]) -> None:
    upstreams = make_upstreams(0, weights)
    policy = SmoothWeightedRoundRobin(upstreams)
    total = sum(weights)
    counts: Counter[Upstream | None] = Counter()
    for picks in range(1, total + 1):
        counts[policy.pick("")] += 1
        for upstream in upstreams:  # never ahead or behind by a whole round
            assert abs(counts[upstream] - Fraction(picks * upstream.weight, total)) < len(upstreams)
    assert [counts[upstream] for upstream in upstreams] == weights


class CreditsOfAll:
    """Smooth weighted round robin as in nginx, for reference: each pick looks at every upstream."""

    def __init__(self, upstreams: list[Upstream]) -> None:
        self.credit = dict.fromkeys(upstreams, 0)

    def pick(self, tried: list[Upstream]) -> Upstream | None:
        untried = [upstream for upstream in self.credit if upstream not in tried]
        for upstream in untried:
            self.credit[upstream] += upstream.weight
        best = max(untried, key=lambda upstream: self.credit[upstream], default=None)
        if best is not None:
            self.credit[best] -= sum(upstream.weight for upstream in untried)
        return best


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=9), st.data())
def test_smooth_weighted_round_robin_agrees_with_the_reference_implementation(
    weights: list[int], data: st.DataObject
) -> None:
    upstreams = make_upstreams(0, weights)
    policy, slow = SmoothWeightedRoundRobin(upstreams), CreditsOfAll(upstreams)
    failed = st.lists(st.sampled_from(upstreams), unique=True, max_size=3)
    for tried in data.draw(st.lists(st.just([]) | failed, max_size=80)):
        assert policy.pick("", tried) is slow.pick(tried)


def test_smooth_weighted_round_robin_is_proportional_among_untried_upstreams() -> None:
    a, b, c = upstreams = make_upstreams(3, [4, 2, 9])
    policy = SmoothWeightedRoundRobin(upstreams)
    counts = Counter(policy.pick("", [c]) for _ in range(60))
    assert counts == {a: 40, b: 20}


# Random choices


@pytest.mark.parametrize("policy_type", [Random, LeastConnections, PowerOfTwoChoices])
def test_equal_upstreams_have_equal_probability(
    policy_type: type[Random] | type[LeastConnections] | type[PowerOfTwoChoices],
) -> None:
    upstreams = make_upstreams(5)
    policy = policy_type(upstreams, random.Random(7))
    counts = Counter(policy.pick("") for _ in range(10_000))
    for upstream in upstreams:  # 2000 ± 5 standard deviations of 40
        assert abs(counts[upstream] - 2000) <= 200


@pytest.mark.parametrize("policy_type", [Random, LeastConnections, PowerOfTwoChoices])
def test_the_same_seed_gives_the_same_picks(
    policy_type: type[Random] | type[LeastConnections] | type[PowerOfTwoChoices],
) -> None:
    upstreams = make_upstreams(5)
    one, other = (policy_type(upstreams, random.Random(3)) for _ in range(2))
    assert [one.pick("") for _ in range(50)] == [other.pick("") for _ in range(50)]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_least_connections_picks_a_least_busy_upstream(loads: list[int]) -> None:
    upstreams = make_upstreams(len(loads))
    for upstream, load in zip(upstreams, loads, strict=True):
        upstream.add_in_flight(load)
    picked = LeastConnections(upstreams, random.Random(1)).pick("")
    assert picked is not None
    assert picked.in_flight == min(loads)


@settings(max_examples=150, deadline=None)
@given(n=st.integers(1, 6), steps=st.lists(st.integers(0, 1 << 20), max_size=150))
def test_least_connections_picks_a_least_busy_upstream_after_any_sequence_of_events(
    n: int, steps: list[int]
) -> None:
    upstreams = make_upstreams(n)
    policy = LeastConnections(upstreams, random.Random(1))
    in_flight: list[Upstream] = []
    for step in steps:
        choice, number = step % 5, step // 5
        if choice == 0 and in_flight:
            in_flight.pop(number % len(in_flight)).release()
        elif choice == 1:  # a request that this policy has not picked
            upstreams[number % n].acquire()
            in_flight.append(upstreams[number % n])
        else:
            tried = [
                upstream for place, upstream in enumerate(upstreams) if choice == 2 and number >> place & 1
            ]
            left = [upstream for upstream in upstreams if upstream not in tried]
            picked = policy.pick("", tried)
            if picked is None:
                assert not left
                continue
            assert picked in left
            assert picked.in_flight == min(upstream.in_flight for upstream in left)
            picked.acquire()
            in_flight.append(picked)


def test_power_of_two_never_picks_the_busiest_upstream() -> None:
    upstreams = make_upstreams(4)
    for upstream in upstreams:
        upstream.add_in_flight(upstream.number)
    policy = PowerOfTwoChoices(upstreams, random.Random(1))
    counts = Counter(policy.pick("") for _ in range(6000))
    # Of the six pairs, three have Server-1 in them, two more Server-2, one more Server-3.
    for upstream, pairs in zip(upstreams, [3, 2, 1, 0], strict=True):
        assert abs(counts[upstream] - 1000 * pairs) <= 200


def test_two_random_choices_spread_load_more_evenly_than_one() -> None:
    spread = {}
    for policy_type in (Random, PowerOfTwoChoices, LeastConnections):
        upstreams = make_upstreams(20)
        policy = policy_type(upstreams, random.Random(5))
        for _ in range(20_000):
            picked = policy.pick("")
            assert picked is not None
            picked.acquire()
        loads = [upstream.in_flight for upstream in upstreams]
        spread[policy_type] = max(loads) - min(loads)
    assert spread[LeastConnections] == 0
    assert spread[PowerOfTwoChoices] <= 10 < spread[Random]
