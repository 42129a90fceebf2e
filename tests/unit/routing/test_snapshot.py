import random
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadbalancer.routing.policies import RoundRobin
from loadbalancer.routing.snapshot import Snapshot, snapshot_maker
from loadbalancer.routing.upstream import Upstream


def test_a_replica_that_eases_in_takes_its_share_and_no_more() -> None:
    upstreams = [Upstream(f"S{number}", number, "fake", number) for number in (1, 2)]
    upstreams[0].share = 0.25
    snapshot = Snapshot(tuple(upstreams), RoundRobin(upstreams), random.Random(1))
    picks = [snapshot.pick("key") for _ in range(10_000)]
    share = picks.count(upstreams[0]) / len(picks)
    assert 0.1 < share < 0.3, "about a quarter of its half"


def test_who_is_alone_takes_all_even_while_easing_in() -> None:
    upstream = Upstream("S1", 1, "fake", 1)
    upstream.share = 0.0
    snapshot = Snapshot((upstream,), RoundRobin([upstream]))
    assert {snapshot.pick("key") for _ in range(100)} == {upstream}


def test_a_retired_upstream_is_let_go_of_when_its_last_request_has_ended() -> None:
    upstream = Upstream("S1", 1, "fake", 1)
    let_go: list[str] = []
    upstream.on_retired.append(lambda: let_go.append("once"))
    upstream.acquire()
    upstream.retire()
    assert let_go == []
    upstream.release()
    assert let_go == ["once"]
    upstream.retire()
    assert let_go == ["once"]


HISTORY = st.lists(st.tuples(st.sampled_from(["pick", "pick", "pick", "end", "publish"]), st.integers(0, 63)))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([1.0, 1.25, 2.0]), HISTORY)
def test_the_bound_is_taken_over_those_in_rotation_whoever_has_left_or_come_back(
    factor: float, history: list[tuple[str, int]]
) -> None:
    """Requests to one that has left are of no account; one that returns brings its own along."""
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
def test_the_least_busy_in_rotation_is_picked_whoever_has_left_or_come_back(
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
def test_the_share_of_one_that_eases_in_goes_to_others_that_have_room(factor: float) -> None:
    upstreams = [Upstream(f"S{number}", number, "fake", number) for number in range(1, 5)]
    upstreams[0].share = 0.5
    snapshot = snapshot_maker("consistent-hash", "default", factor, random.Random(1))(upstreams)
    for key in range(400):
        total = sum(upstream.in_flight for upstream in upstreams)
        upstream = snapshot.pick(str(key))
        assert upstream is not None
        upstream.acquire()
        # Others take what it leaves within a bound of their own, over themselves.
        assert upstream.in_flight <= ceil(Fraction(factor) * (total + 1) / 3)
