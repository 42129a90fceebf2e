"""The cost of a pick and of a ring change with many replicas: the least CPU time of many runs."""

import random
import time
from collections.abc import Callable
from typing import get_args

import pytest

from loadbalancer.routing.snapshot import Snapshot, snapshot_maker
from loadbalancer.routing.upstream import Upstream
from loadbalancer.settings import Settings

NAMES = get_args(Settings.model_fields["policy"].annotation)

KEYS = [f"key-{number}" for number in range(400)]

RATIO = 3
"""Maximum ratio of costs. The aim is 2; 3 allows for a busy machine. A cost that grows with N gives 300."""

WEIGHTS = (5, 1, 1)


def snapshot_of(name: str, n: int, busy: int = 2) -> Snapshot:
    upstreams = [
        Upstream(f"Server-{number}", number, "127.0.0.1", number, WEIGHTS[number % 3])
        for number in range(1, n + 1)
    ]
    for upstream in upstreams:
        upstream.add_in_flight(busy)
    return snapshot_maker(name, "default", 1.25, random.Random(1))(upstreams)


def cost(work: Callable[[], object], runs: int = 25) -> float:
    """Return the CPU time of the fastest run, in seconds."""
    times = []
    for _ in range(runs):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def pick_all(snapshot: Snapshot, tried: int = 0) -> None:
    failed = snapshot.upstreams[:tried]
    for key in KEYS:
        upstream = snapshot.pick(key, failed)
        assert upstream is not None
        upstream.acquire()
        upstream.release()


@pytest.mark.parametrize("tried", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_a_pick_costs_the_same_with_3_and_with_1000_replicas(name: str, tried: int) -> None:
    few, many = snapshot_of(name, 3), snapshot_of(name, 1000)
    assert cost(lambda: pick_all(many, tried)) <= RATIO * cost(lambda: pick_all(few, tried))


def test_a_pick_whose_owner_is_full_costs_the_same_with_3_and_with_1000_replicas() -> None:
    few, many = snapshot_of("consistent-hash", 3), snapshot_of("consistent-hash", 1000)
    for snapshot in (few, many):
        hot = snapshot.pick(KEYS[0])
        assert hot is not None
        hot.add_in_flight(1000)
        assert snapshot.pick(KEYS[0]) not in (None, hot)
    costs = [cost(lambda: [snapshot.pick(KEYS[0]) for _ in KEYS]) for snapshot in (few, many)]  # noqa: B023
    assert costs[1] <= RATIO * costs[0]


def test_a_ring_change_costs_little_with_100_members() -> None:
    def change(n: int) -> float:
        upstreams = [Upstream(f"Server-{number}", number, "fake", number) for number in range(1, n + 1)]
        make = snapshot_maker("consistent-hash", "default", 1.25, random.Random(1))
        make(upstreams)
        return cost(lambda: (make(upstreams[1:]), make(upstreams)), runs=9) / 2

    assert change(100) <= RATIO * change(3)
    assert change(100) <= 0.015, "the aim is 3 ms; five times as much allows for a busy machine"
