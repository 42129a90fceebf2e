"""Finding a replica, another, or waiting for one: on a virtual clock."""

import asyncio
from collections.abc import Callable

import pytest

from loadbalancer.errors import (
    NoReplicaError,
    UpstreamClosedError,
    UpstreamError,
    UpstreamGarbledError,
    UpstreamRefusedError,
    UpstreamStaleError,
    UpstreamTimeoutError,
)
from loadbalancer.proxy.asgi.attempts import carry
from loadbalancer.proxy.retry import RetryBudget
from loadbalancer.proxy.router import SETTLES_WITHIN, Route, Router
from loadbalancer.routing.snapshot import Snapshot
from loadbalancer.routing.upstream import Upstream
from tests.unit.fleet.fakes import make_snapshot, now, pass_time, scenario


class Source:
    """Publishes what a test tells it to."""

    def __init__(self, *upstreams: Upstream) -> None:
        self.expects_upstream = True
        self._changed = asyncio.Event()
        self.snapshot: Snapshot = make_snapshot(upstreams)

    def publish(self, *upstreams: Upstream) -> None:
        self.snapshot = make_snapshot(upstreams)
        self._changed.set()
        self._changed = asyncio.Event()

    async def next_snapshot(self) -> None:
        await self._changed.wait()


def upstream(number: int) -> Upstream:
    return Upstream(f"S{number}", number, "fake", number)


class Virtual:
    """The virtual loop's time."""

    @property
    def now(self) -> float:
        return now()


def router(source: Source, size: int = 10) -> Router:
    return Router(source, RetryBudget(Virtual()), queue_timeout=2.0, queue_size=size)


async def carried(
    source: Source,
    *outcomes: type[UpstreamError] | None,
    may_repeat: Callable[[UpstreamError], bool] = lambda error: True,
) -> list[str]:
    """Carry a request whose attempts end so: the names tried, with a `!` if the connection had to be new."""
    tried: list[str] = []
    left = iter(outcomes)

    async def attempt(upstream: Upstream, fresh: bool) -> None:
        assert upstream.in_flight == 1
        tried.append(upstream.hostname + "!" * fresh)
        if error := next(left):
            raise error("so it is")

    await carry(router(source), "key", attempt, may_repeat)
    return tried


@scenario
async def test_a_good_replica_is_tried_once() -> None:
    one = upstream(1)
    assert await carried(Source(one), None) == ["S1"]
    assert one.in_flight == 0


@scenario
async def test_the_next_replica_gets_what_the_first_has_refused() -> None:
    source = Source(upstream(1), upstream(2), upstream(3))
    assert await carried(source, UpstreamRefusedError, UpstreamRefusedError, None) == ["S1", "S2", "S3"]
    assert all(one.in_flight == 0 for one in source.snapshot.upstreams)


@scenario
async def test_a_broken_connection_is_forgiven_once() -> None:
    source = Source(upstream(1), upstream(2), upstream(3))
    assert await carried(source, UpstreamClosedError, None) == ["S1", "S2"]
    with pytest.raises(UpstreamClosedError):
        await carried(source, UpstreamClosedError, UpstreamClosedError, None)


@scenario
async def test_a_stale_connection_is_followed_by_a_new_one_to_the_same_replica() -> None:
    """RFC 9112, section 9.3.1: the connection was at fault, and not the replica."""
    one = upstream(1)
    assert await carried(Source(one), UpstreamStaleError, None) == ["S1", "S1!"]
    assert one.consecutive_failures == 0
    source = Source(upstream(1), upstream(2), upstream(3))
    assert await carried(source, UpstreamClosedError, UpstreamStaleError, None) == ["S1", "S2", "S2!"]
    source = Source(upstream(1), upstream(2), upstream(3))
    assert await carried(source, UpstreamStaleError, UpstreamClosedError, None) == ["S1", "S1!", "S2!"]


@scenario
async def test_connections_after_a_stale_one_are_new_and_fail_in_earnest() -> None:
    one = upstream(1)
    with pytest.raises(UpstreamClosedError):
        await carried(Source(one), UpstreamStaleError, UpstreamStaleError, None)
    assert one.consecutive_failures == 1
    source = Source(upstream(1), upstream(2), upstream(3))
    with pytest.raises(UpstreamClosedError):
        await carried(source, UpstreamStaleError, UpstreamClosedError, UpstreamClosedError)


@scenario
async def test_a_stale_connection_costs_no_retry() -> None:
    class Spent(RetryBudget):
        def withdraw(self) -> bool:
            return False

    route, one = Route("key"), upstream(1)
    routing = Router(Source(one), Spent(Virtual()), queue_timeout=2.0, queue_size=10)
    assert routing.may_go_on(route, one, UpstreamStaleError("it ended"), repeatable=True)
    assert (routing.pick(route), route.fresh, route.tried) == (one, True, ())
    assert not routing.may_go_on(route, one, UpstreamClosedError("it ended"), repeatable=True)


@scenario
async def test_a_request_that_may_not_be_repeated_is_not_after_a_stale_connection_either() -> None:
    one = upstream(1)
    with pytest.raises(UpstreamStaleError):
        await carried(Source(one), UpstreamStaleError, None, may_repeat=lambda error: False)
    assert one.consecutive_failures == 0


@scenario
async def test_a_replica_that_left_the_rotation_is_not_gone_back_to() -> None:
    one, two = upstream(1), upstream(2)
    source, route = Source(one, two), Route("key")
    routing = router(source)
    assert routing.may_go_on(route, one, UpstreamStaleError("it ended"), repeatable=True)
    source.publish(two)
    assert routing.pick(route) is two


@scenario
async def test_what_may_not_be_repeated_is_not() -> None:
    source = Source(upstream(1), upstream(2))
    with pytest.raises(UpstreamRefusedError):
        await carried(source, UpstreamRefusedError, None, may_repeat=lambda error: False)


@scenario
async def test_when_all_refuse_the_last_error_is_told_soon() -> None:
    begun = now()
    with pytest.raises(UpstreamRefusedError):
        await carried(Source(upstream(1)), UpstreamRefusedError, None)
    assert now() - begun == pytest.approx(SETTLES_WITHIN)


@scenario
async def test_a_replacement_takes_what_the_dead_one_dropped() -> None:
    source = Source(upstream(1))
    carrying = asyncio.create_task(carried(source, UpstreamClosedError, None))
    await pass_time(0.1)
    source.publish()  # it is found dead
    await pass_time(1.5)
    source.publish(upstream(1))
    assert await carrying == ["S1", "S1"]


@scenario
async def test_who_has_failed_on_replicas_that_are_gone_since_is_told_that_there_are_none() -> None:
    source = Source(upstream(1))
    carrying = asyncio.create_task(carried(source, UpstreamClosedError, None))
    await pass_time(0.1)
    source.publish()
    with pytest.raises(NoReplicaError):
        await carrying


@scenario
async def test_a_request_waits_for_the_first_replica() -> None:
    source = Source()
    carrying = asyncio.create_task(carried(source, None))
    await pass_time(1.9)
    source.publish(upstream(7))
    assert await carrying == ["S7"]


@scenario
async def test_a_replica_that_came_before_the_wait_began_is_seen() -> None:
    """It enters the rotation between `first` and `wait`, which the fast lane calls in a later turn."""
    source = Source()
    routing, begun = router(source, size=0), now()
    assert routing.first("key") is None
    source.publish(upstream(7))
    assert (await routing.wait(Route("key"))).hostname == "S7"
    assert now() == begun


@scenario
async def test_nobody_waits_for_ever() -> None:
    begun = now()
    with pytest.raises(NoReplicaError, match="try again in a moment"):
        await carried(Source())
    assert now() - begun == pytest.approx(2.0)


@scenario
async def test_nobody_waits_where_none_is_to_come() -> None:
    source = Source()
    source.expects_upstream = False
    begun = now()
    with pytest.raises(NoReplicaError, match="none is to come"):
        await carried(source)
    assert now() == begun


@scenario
async def test_the_queue_is_bounded() -> None:
    source = Source()
    queue = router(source, size=3)

    async def attempt(upstream: Upstream, fresh: bool) -> None:
        pass

    waiting = [asyncio.create_task(carry(queue, "key", attempt, lambda _: True)) for _ in range(5)]
    await pass_time(0.1)
    source.publish(upstream(1))
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 3 + [NoReplicaError] * 2
    assert "3 requests wait" in str(outcomes[-1])


@scenario
async def test_what_becomes_of_a_request_is_told_to_whoever_watches_the_replica() -> None:
    one, refused = upstream(1), []
    one.on_refusal = lambda: refused.append(1)
    for error in (UpstreamRefusedError, UpstreamTimeoutError, UpstreamError):
        with pytest.raises(UpstreamError):
            await carried(Source(one), error, may_repeat=lambda error: False)
    assert (len(refused), one.consecutive_failures) == (1, 2)


@scenario
async def test_no_page_has_a_replica_ejected_that_answers_it_against_the_rules() -> None:
    one = upstream(1)
    for _ in range(10):
        with pytest.raises(UpstreamGarbledError):
            await carried(Source(one), UpstreamGarbledError, may_repeat=lambda error: False)
    assert one.consecutive_failures == 0
