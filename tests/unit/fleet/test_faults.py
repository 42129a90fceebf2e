"""Replicas that die, hang or never start, and the start and shutdown of the fleet, on a virtual clock."""

import asyncio
import itertools

import pytest

from loadbalancer.errors import BackendError, ClosingError
from loadbalancer.fleet.backends.base import Found, Instance, ReplicaSpec
from tests.unit.fleet.fakes import (
    FakeBackend,
    make_fleet,
    names,
    now,
    pass_time,
    running,
    scenario,
    until,
)


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
            busy.successes += 1
            await pass_time(0.1)
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
        await pass_time(5)
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
        await pass_time(300)
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
async def test_a_replica_that_dies_after_a_stable_time_is_replaced_at_once() -> None:
    backend = FakeBackend()
    async with running(backend, stable=10.0) as (fleet, _):
        for _ in range(5):
            backend.die("Server-1")
            await until(lambda: len(fleet.snapshot.upstreams) == 2, within=0.1)
            assert await until(lambda: len(fleet.snapshot.upstreams) == 3, within=10) < 1
            await pass_time(11)


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
        await pass_time(60)
        begun = now()
        assert await fleet.remove(1, ["Server-1"]) == ["Server-2", "Server-3"]
        assert now() - begun < 1


@scenario
async def test_rep_does_not_wait_for_containers() -> None:
    backend = FakeBackend(start_time=20.0)
    fleet, _ = make_fleet(backend)
    await fleet.open()
    adding = asyncio.create_task(fleet.add(3))
    await pass_time(0.5)
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
    await pass_time(0.1)
    await fleet.close()
    with pytest.raises(ClosingError):
        await adding
    assert not backend.running
    with pytest.raises(ClosingError):
        await fleet.add(1)


@scenario
async def test_hurry_ends_draining_and_the_grace_of_a_stop() -> None:
    backend = FakeBackend()
    fleet, _ = make_fleet(backend, drain=100.0, stop=100.0)
    await fleet.open()
    await until(lambda: len(fleet.snapshot.upstreams) == 3, within=5)
    fleet.snapshot.upstreams[0].acquire()
    backend.hang("Server-2")
    closing = asyncio.create_task(fleet.close())
    await pass_time(1)
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
async def test_living_replicas_survive_a_minute_without_the_engine() -> None:
    backend = FakeBackend()
    async with running(backend) as (fleet, journal):
        backend.unreachable = True
        backend.die("Server-1")
        await pass_time(60)
        assert names(fleet) == ["Server-2", "Server-3"]
        assert set(journal.of("down")) == {"Server-1"}
        backend.unreachable = False
        await until(lambda: len(fleet.snapshot.upstreams) == 3, within=31)
