import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from loadbalancer.errors import BackendError, BadRequestError, ClosingError
from loadbalancer.fleet.backends.base import Found, Instance, ReplicaSpec
from loadbalancer.fleet.fleet import Fleet
from tests.unit.fleet.fakes import FakeBackend, Journal, make_fleet, now, run, until


@asynccontextmanager
async def running(backend: FakeBackend, **options: Any) -> AsyncIterator[tuple[Fleet, Journal]]:
    fleet, journal = make_fleet(backend, **options)
    await fleet.open()
    expected = len(await fleet.members())
    await until(lambda: len(fleet.snapshot.upstreams) == expected, within=5)
    try:
        yield fleet, journal
    finally:
        await fleet.close()
        assert not backend.running, "close leaves nothing behind"
        assert backend.closed


def scenario(body: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run an async test on the virtual clock."""

    def test() -> None:
        run(body())

    test.__name__ = body.__name__
    return test


def names(fleet: Fleet) -> list[str]:
    return [upstream.hostname for upstream in fleet.snapshot.upstreams]


@scenario
async def test_the_first_n_are_server_1_to_n_and_all_come_into_rotation() -> None:
    async with running(FakeBackend(), replicas=4) as (fleet, _):
        assert names(fleet) == ["Server-1", "Server-2", "Server-3", "Server-4"]
        assert [u.number for u in fleet.snapshot.upstreams] == [1, 2, 3, 4]


@scenario
async def test_members_are_listed_before_they_are_up() -> None:
    fleet, _ = make_fleet(FakeBackend())
    await fleet.open()
    assert await fleet.members() == ["Server-1", "Server-2", "Server-3"]
    assert not fleet.serving
    state = await fleet.describe()
    assert state.desired == 3
    assert {replica.state for replica in state.replicas} == {"starting"}
    await fleet.close()


@scenario
async def test_two_adds_at_once_give_six_more_with_names_all_different() -> None:
    async with running(FakeBackend()) as (fleet, _):
        await asyncio.gather(fleet.add(3), fleet.add(3))
        members = await fleet.members()
        assert len(members) == len(set(members)) == 9
        assert names(fleet) == members
        assert [u.number for u in fleet.snapshot.upstreams] == list(range(1, 10))


@scenario
async def test_adding_ten_takes_little_longer_than_adding_one() -> None:
    backend = FakeBackend(start_time=1.0)
    async with running(backend) as (fleet, _):
        begun = now()
        await fleet.add(10)
        assert now() - begun < 1.5
        assert backend.most_at_once >= 10


@scenario
async def test_starts_at_once_are_bounded() -> None:
    backend = FakeBackend(start_time=1.0)
    async with running(backend) as (fleet, _):
        await fleet.add(40)
        assert backend.most_at_once == 16


@scenario
async def test_newcomers_enter_the_rotation_together() -> None:
    backend = FakeBackend()
    async with running(backend) as (fleet, _):
        adding = asyncio.create_task(fleet.add(2, ["quick", "slow"]))
        await until(lambda: len(backend.running) == 5, within=1)
        backend.hang("slow")
        await asyncio.sleep(3)
        assert len(fleet.snapshot.upstreams) == 3
        assert len(await fleet.members()) == 3
        backend.hung.clear()
        assert await adding == ["Server-1", "Server-2", "Server-3", "quick", "slow"]
        assert names(fleet) == ["Server-1", "Server-2", "Server-3", "quick", "slow"]


@scenario
async def test_a_name_in_use_is_refused_and_nothing_changes() -> None:
    backend = FakeBackend()
    async with running(backend) as (fleet, _):
        for name in ("Server-2", "server-2"):
            with pytest.raises(BadRequestError, match=name):
                await fleet.add(2, ["fresh", name])
        assert len(await fleet.members()) == len(backend.started) == 3


@scenario
async def test_no_room_is_refused_and_nothing_changes() -> None:
    backend = FakeBackend()
    async with running(backend, capacity=5) as (fleet, _):
        with pytest.raises(BadRequestError, match="no slots left"):
            await fleet.add(3)
        assert len(await fleet.members()) == len(backend.started) == 3


@scenario
async def test_when_one_cannot_start_add_fails_and_all_it_started_is_gone() -> None:
    backend = FakeBackend()
    backend.refuse = lambda spec: "there is no image 'x'" if spec.hostname == "bad" else None
    async with running(backend) as (fleet, _):
        with pytest.raises(BackendError, match="no image"):
            await fleet.add(3, ["good", "bad"])
        assert await fleet.members() == ["Server-1", "Server-2", "Server-3"]
        assert len(backend.running) == 3
        assert len((await fleet.describe()).replicas) == 3
        assert await fleet.add(1, ["bad2"]) == ["Server-1", "Server-2", "Server-3", "bad2"]


@scenario
async def test_a_replica_that_exits_at_once_makes_add_fail_with_its_reason() -> None:
    backend = FakeBackend()
    async with running(backend) as (fleet, _):
        backend.dies_at_once = lambda spec: True
        with pytest.raises(BackendError, match="ended before its first heartbeat: exited with code 1"):
            await fleet.add(1)
        backend.dies_at_once = lambda spec: False
        assert len(backend.running) == 3


@scenario
async def test_a_replica_that_never_answers_makes_add_fail_in_time() -> None:
    backend = FakeBackend()
    async with running(backend, start=5.0) as (fleet, _):
        adding = asyncio.create_task(fleet.add(1, ["mute"]))
        await until(lambda: len(backend.running) == 4, within=1)
        backend.hang("mute")
        with pytest.raises(BackendError, match="no good heartbeat within 5 s"):
            await adding
        assert len(backend.running) == 3


@scenario
async def test_a_cancelled_add_is_carried_to_its_end() -> None:
    async with running(FakeBackend()) as (fleet, _):
        adding = asyncio.create_task(fleet.add(2))
        await asyncio.sleep(0.1)
        adding.cancel()
        await until(lambda: len(fleet.snapshot.upstreams) == 5, within=2)
        assert len(await fleet.members()) == 5


@scenario
async def test_a_leavers_number_goes_to_the_next_newcomer() -> None:
    async with running(FakeBackend()) as (fleet, _):
        await fleet.remove(1, ["Server-2"])
        await fleet.add(2, ["a", "b"])
        assert {u.hostname: u.number for u in fleet.snapshot.upstreams} == {
            "Server-1": 1,
            "a": 2,
            "Server-3": 3,
            "b": 4,
        }


@scenario
async def test_remove_takes_those_named_and_the_rest_at_random() -> None:
    async with running(FakeBackend(), replicas=6) as (fleet, _):
        left = await fleet.remove(3, ["Server-5"])
        assert len(left) == 3
        assert "Server-5" not in left
        assert names(fleet) == left


@scenario
async def test_remove_refuses_unknown_names_and_too_many_and_changes_nothing() -> None:
    async with running(FakeBackend()) as (fleet, journal):
        with pytest.raises(BadRequestError, match="'nobody'"):
            await fleet.remove(2, ["Server-1", "nobody"])
        with pytest.raises(BadRequestError, match="only 3"):
            await fleet.remove(4)
        assert len(await fleet.members()) == 3
        assert journal.of("draining") == []


@scenario
async def test_removing_all_leaves_an_empty_fleet_that_can_grow_again() -> None:
    async with running(FakeBackend()) as (fleet, _):
        assert await fleet.remove(3) == []
        assert not fleet.serving
        assert len(await fleet.add(2)) == 2
        assert fleet.serving


@scenario
async def test_a_leaver_is_off_the_ring_at_once_and_stopped_when_its_requests_have_ended() -> None:
    backend = FakeBackend()
    async with running(backend) as (fleet, _):
        upstream = fleet.snapshot.upstreams[1]
        upstream.acquire()
        removing = asyncio.create_task(fleet.remove(1, ["Server-2"]))
        await asyncio.sleep(0)
        await until(lambda: names(fleet) == ["Server-1", "Server-3"], within=0.1)
        await asyncio.sleep(4)
        assert not removing.done()
        assert backend.stops == []
        assert await fleet.members() == ["Server-1", "Server-3"]
        states = {replica.hostname: replica for replica in (await fleet.describe()).replicas}
        assert (states["Server-2"].state, states["Server-2"].in_flight) == ("draining", 1)
        upstream.release()
        assert await removing == ["Server-1", "Server-3"]
        assert len(backend.running) == 2


@scenario
async def test_draining_ends_after_its_time_out() -> None:
    backend = FakeBackend()
    async with running(backend, drain=2.0, stop=7.0) as (fleet, _):
        fleet.snapshot.upstreams[0].acquire()
        begun = now()
        await fleet.remove(1, ["Server-1"])
        assert 2.0 <= now() - begun < 2.5
        assert [grace for _, _, grace in backend.stops] == [7.0]


@scenario
async def test_a_dead_replica_is_replaced_at_once_under_its_name_and_number() -> None:
    backend = FakeBackend()
    async with running(backend) as (fleet, journal):
        before = {u.hostname: u for u in fleet.snapshot.upstreams}
        backend.die("Server-2", "exited with code 137")
        await until(lambda: names(fleet) == ["Server-1", "Server-3"], within=0.1)
        assert await fleet.members() == ["Server-1", "Server-2", "Server-3"]
        took = await until(lambda: len(fleet.snapshot.upstreams) == 3, within=5)
        assert took < 1
        after = {u.hostname: u for u in fleet.snapshot.upstreams}
        assert after["Server-2"].number == 2
        assert after["Server-2"] is not before["Server-2"]
        assert after["Server-1"] is before["Server-1"]
        replica = (await fleet.describe()).replicas[1]
        assert (replica.restarts, replica.reason) == (1, "exited with code 137")
        assert journal.of("down") == ["Server-2"]


@scenario
async def test_a_hung_replica_is_found_by_its_missed_heartbeats() -> None:
    backend = FakeBackend()
    async with running(backend, max_fail_count=3) as (fleet, journal):
        backend.hang("Server-3")
        took = await until(lambda: names(fleet) == ["Server-1", "Server-2"], within=10)
        assert 2 < took <= 4.1
        await until(lambda: len(fleet.snapshot.upstreams) == 3, within=1)
        assert journal.of("missed") == ["Server-3"] * 3
        replica = (await fleet.describe()).replicas[2]
        assert replica.reason == "missed 3 heartbeats in a row: no heartbeat within 1 s"


@scenario
async def test_a_replica_that_answers_requests_is_busy_and_not_dead() -> None:
    backend = FakeBackend()
    async with running(backend) as (fleet, journal):
        busy = fleet.snapshot.upstreams[0]
        busy.acquire()
        backend.hang("Server-1")
        for _ in range(100):
            busy.answered += 1
            await asyncio.sleep(0.1)
        assert journal.of("missed") == []
        await until(lambda: "Server-1" not in names(fleet), within=5)  # it answers no more
        busy.release()


@scenario
async def test_fewer_misses_than_the_limit_are_forgiven() -> None:
    backend = FakeBackend()
    async with running(backend) as (fleet, journal):
        backend.hang("Server-1")
        await until(lambda: journal.of("missed") == ["Server-1"], within=5)
        backend.hung.clear()
        await asyncio.sleep(5)
        assert journal.of("down") == []
        assert [replica.missed for replica in (await fleet.describe()).replicas] == [0, 0, 0]


@scenario
async def test_a_slow_replica_does_not_delay_the_heartbeats_of_others() -> None:
    backend = FakeBackend()
    async with running(backend) as (fleet, _):
        backend.slow[backend.instance_of("Server-1").id] = 60.0
        backend.hang("Server-2")
        took = await until(lambda: "Server-2" not in names(fleet), within=10)
        assert took <= 4.1


@scenario
async def test_a_crash_loop_backs_off_and_the_reason_is_shown() -> None:
    backend = FakeBackend()
    async with running(backend) as (fleet, _):
        backend.dies_at_once = lambda spec: True
        backend.started.clear()
        backend.die("Server-1")
        await asyncio.sleep(300)
        starts = [at for at, _ in backend.started]
        gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
        assert 8 < len(starts) < 40, "tries again, but ever more rarely"
        assert max(gaps) > 15
        assert max(gaps) < 31
        replica = (await fleet.describe()).replicas[0]
        assert replica.state in ("down", "starting")
        assert replica.reason is not None
        assert "exited with code 1" in replica.reason
        assert await fleet.members() == ["Server-1", "Server-2", "Server-3"]
        backend.dies_at_once = lambda spec: False
        await until(lambda: len(fleet.snapshot.upstreams) == 3, within=31)


@scenario
async def test_after_a_stable_time_a_death_is_answered_at_once_again() -> None:
    backend = FakeBackend()
    async with running(backend, stable=10.0) as (fleet, _):
        for _ in range(5):
            backend.die("Server-1")
            await until(lambda: len(fleet.snapshot.upstreams) == 2, within=0.1)
            assert await until(lambda: len(fleet.snapshot.upstreams) == 3, within=10) < 1
            await asyncio.sleep(11)


@scenario
async def test_a_replica_can_be_removed_while_its_replacement_starts() -> None:
    backend = FakeBackend(start_time=1.0)
    async with running(backend) as (fleet, _):
        backend.die("Server-1")
        await until(lambda: len(backend.started) == 4, within=1)
        assert await fleet.remove(1, ["Server-1"]) == ["Server-2", "Server-3"]
        assert len(backend.running) == 2


@scenario
async def test_a_replica_can_be_removed_while_it_backs_off() -> None:
    backend = FakeBackend()
    async with running(backend) as (fleet, _):
        backend.refuse = lambda spec: "no memory left"
        backend.die("Server-1")
        await asyncio.sleep(60)
        begun = now()
        assert await fleet.remove(1, ["Server-1"]) == ["Server-2", "Server-3"]
        assert now() - begun < 1


@scenario
async def test_rep_does_not_wait_for_containers() -> None:
    backend = FakeBackend(start_time=20.0)
    fleet, _ = make_fleet(backend)
    await fleet.open()
    adding = asyncio.create_task(fleet.add(3))
    await asyncio.sleep(0.5)
    begun = now()
    await fleet.members()
    await fleet.describe()
    assert now() == begun
    await adding
    await fleet.close()


@scenario
async def test_closing_in_the_middle_of_an_add_leaves_nothing() -> None:
    backend = FakeBackend()
    fleet, _ = make_fleet(backend)
    await fleet.open()
    adding = asyncio.create_task(fleet.add(3))
    await asyncio.sleep(0.1)
    await fleet.close()
    with pytest.raises(ClosingError):
        await adding
    assert not backend.running
    with pytest.raises(ClosingError):
        await fleet.add(1)


@scenario
async def test_hurry_cuts_draining_and_grace_short() -> None:
    backend = FakeBackend()
    fleet, _ = make_fleet(backend, drain=100.0, stop=100.0)
    await fleet.open()
    await until(lambda: len(fleet.snapshot.upstreams) == 3, within=5)
    fleet.snapshot.upstreams[0].acquire()
    backend.hang("Server-2")
    closing = asyncio.create_task(fleet.close())
    await asyncio.sleep(1)
    assert not closing.done()
    begun = now()
    fleet.hurry()
    await closing
    assert now() - begun < 1
    assert not backend.running


def adopted(hostname: str, number: int, port: int) -> Found:
    return Found(ReplicaSpec(hostname, number), Instance(f"old-{hostname}", "fake", port))


@scenario
async def test_leftovers_are_adopted_with_their_names_numbers_and_count() -> None:
    backend = FakeBackend(leftovers=[adopted("b", 5, 901), adopted("Server-1", 1, 902)])
    async with running(backend, replicas=3) as (fleet, _):
        state = await fleet.describe()
        assert state.desired == 2
        assert [(r.hostname, r.number, r.id) for r in state.replicas] == [
            ("Server-1", 1, "old-Server-1"),
            ("b", 5, "old-b"),
        ]
        assert backend.started == []


@scenario
async def test_a_leftover_that_has_ended_is_replaced_under_its_name_and_number() -> None:
    dead = Found(ReplicaSpec("Server-2", 2), None)
    backend = FakeBackend(leftovers=[adopted("Server-1", 1, 901), dead])
    async with running(backend) as (fleet, _):
        assert {u.hostname: u.number for u in fleet.snapshot.upstreams} == {"Server-1": 1, "Server-2": 2}
        assert [hostname for _, hostname in backend.started] == ["Server-2"]


@scenario
async def test_a_replica_that_cannot_be_stopped_is_reported_and_leaves_the_fleet() -> None:
    backend = FakeBackend()
    async with running(backend) as (fleet, _):
        backend.unreachable = True
        with pytest.raises(BackendError, match="Server-1 has left the fleet but could not be stopped"):
            await fleet.remove(1, ["Server-1"])
        backend.unreachable = False
        assert await fleet.members() == ["Server-2", "Server-3"]
        await backend.stop(backend.instance_of("Server-1"), 0)


@scenario
async def test_an_engine_gone_for_a_minute_costs_no_living_replica() -> None:
    backend = FakeBackend()
    async with running(backend) as (fleet, journal):
        backend.unreachable = True
        backend.die("Server-1")
        await asyncio.sleep(60)
        assert names(fleet) == ["Server-2", "Server-3"]
        assert set(journal.of("down")) == {"Server-1"}
        backend.unreachable = False
        await until(lambda: len(fleet.snapshot.upstreams) == 3, within=31)
