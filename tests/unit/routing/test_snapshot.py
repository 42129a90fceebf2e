import random
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadbalancer.routing.policies import RoundRobin
from loadbalancer.routing.snapshot import Snapshot, snapshot_maker
from loadbalancer.routing.upstream import Upstream


def test_an_upstream_in_slow_start_accepts_its_share() -> None:
    upstreams = [Upstream(f"S{number}", number, "fake", number) for number in (1, 2)]
    upstreams[0].share = 0.25
    snapshot = Snapshot(tuple(upstreams), RoundRobin(upstreams), random.Random(1))
    picks = [snapshot.pick("key") for _ in range(10_000)]
    share = picks.count(upstreams[0]) / len(picks)
    assert 0.1 < share < 0.3, "about a quarter of its normal share, which is half"


def test_a_single_upstream_accepts_all_requests_even_in_slow_start() -> None:
    upstream = Upstream("S1", 1, "fake", 1)
    upstream.share = 0.0
    snapshot = Snapshot((upstream,), RoundRobin([upstream]))
    assert {snapshot.pick("key") for _ in range(100)} == {upstream}


def test_on_retired_is_called_once_when_the_last_request_ends() -> None:
    upstream = Upstream("S1", 1, "fake", 1)
    calls: list[str] = []
    upstream.on_retired.append(lambda: calls.append("retired"))
    upstream.acquire()
    upstream.retire()
    assert calls == []
    upstream.release()
    assert calls == ["retired"]
    upstream.retire()
    assert calls == ["retired"]


HISTORY = st.lists(st.tuples(st.sampled_from(["pick", "pick", "pick", "end", "publish"]), st.integers(0, 63)))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([1.0, 1.25, 2.0]), HISTORY)
def test_the_bound_counts_the_upstreams_in_rotation_after_any_sequence_of_events(
    factor: float, history: list[tuple[str, int]]
) -> None:
    """The requests of an upstream count exactly while it is in rotation."""
    upstreams = [Upstream(f"S{number}", number, "fake", number) for number in range(1, 7)]
    make = snapshot_maker("consistent-hash", "classic-sha256", factor, random.Random(1))
    snapshot, in_flight = make(upstreams), list[Upstream]()
    for step, choice in history:
        if step == "publish":
            snapshot = make([upstream for place, upstream in enumerate(upstreams) if choice >> place & 1])
        elif step == "end" and in_flight:
            in_flight.pop(choice % len(in_flight)).release()
        elif step == "pick":
            total = sum(upstream.in_flight for upstream in snapshot.upstreams)
            upstream = snapshot.pick(str(choice % 4))
            if upstream is None:
                assert not snapshot.upstreams
                continue
            assert upstream in snapshot.upstreams
            upstream.acquire()
            in_flight.append(upstream)
            assert upstream.in_flight <= ceil(Fraction(factor) * (total + 1) / len(snapshot.upstreams))


@settings(max_examples=150, deadline=None)
@given(HISTORY)
def test_a_least_busy_upstream_in_rotation_is_picked_after_any_sequence_of_events(
    history: list[tuple[str, int]],
) -> None:
    upstreams = [Upstream(f"S{number}", number, "fake", number) for number in range(1, 7)]
    make = snapshot_maker("least-connections", "default", 0, random.Random(1))
    snapshot, in_flight = make(upstreams), list[Upstream]()
    for step, choice in history:
        if step == "publish":
            snapshot = make([upstream for place, upstream in enumerate(upstreams) if choice >> place & 1])
        elif step == "end" and in_flight:
            in_flight.pop(choice % len(in_flight)).release()
        elif step == "pick" and snapshot.upstreams:
            upstream = snapshot.pick("key")
            assert upstream is not None
            assert upstream.in_flight == min(other.in_flight for other in snapshot.upstreams)
            upstream.acquire()
            in_flight.append(upstream)


@pytest.mark.parametrize("factor", [1.0, 1.25])
def test_requests_that_a_slow_start_leaves_go_to_upstreams_that_are_not_full(factor: float) -> None:
    upstreams = [Upstream(f"S{number}", number, "fake", number) for number in range(1, 5)]
    upstreams[0].share = 0.5
    snapshot = snapshot_maker("consistent-hash", "default", factor, random.Random(1))(upstreams)
    for key in range(400):
        total = sum(upstream.in_flight for upstream in upstreams)
        upstream = snapshot.pick(str(key))
        assert upstream is not None
        upstream.acquire()
        # The bound for the remaining requests counts the other three upstreams only.
        assert upstream.in_flight <= ceil(Fraction(factor) * (total + 1) / 3)
