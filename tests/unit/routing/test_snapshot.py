import random

from loadbalancer.routing.policies import RoundRobin
from loadbalancer.routing.snapshot import Snapshot
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
