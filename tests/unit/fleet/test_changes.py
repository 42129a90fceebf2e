"""Adding and removing replicas, as `/add` and `/rm` do, on a virtual clock."""

import asyncio

import pytest

from loadbalancer.errors import BackendError, BadRequestError
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
async def test_the_first_replicas_are_named_server_1_to_n_and_enter_the_rotation() -> None:
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
        await pass_time(3)
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
async def test_an_add_fails_and_removes_its_replicas_when_one_of_them_cannot_start() -> None:
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
async def test_an_add_fails_with_the_reason_of_a_replica_that_exits_at_once() -> None:
    backend = FakeBackend()
    async with running(backend) as (fleet, _):
        backend.dies_at_once = lambda spec: True
        with pytest.raises(BackendError, match="ended before its first heartbeat: exited with code 1"):
            await fleet.add(1)
        backend.dies_at_once = lambda spec: False
        assert len(backend.running) == 3


@scenario
async def test_an_add_fails_within_the_start_timeout_when_a_replica_never_answers() -> None:
    backend = FakeBackend()
    async with running(backend, start=5.0) as (fleet, _):
        adding = asyncio.create_task(fleet.add(1, ["mute"]))
        await until(lambda: len(backend.running) == 4, within=1)
        backend.hang("mute")
        with pytest.raises(BackendError, match="no good heartbeat within 5 s"):
            await adding
        assert len(backend.running) == 3


@scenario
async def test_an_add_is_completed_when_its_caller_is_cancelled() -> None:
    async with running(FakeBackend()) as (fleet, _):
        adding = asyncio.create_task(fleet.add(2))
        await pass_time(0.1)
        adding.cancel()
        await until(lambda: len(fleet.snapshot.upstreams) == 5, within=2)
        assert len(await fleet.members()) == 5


@scenario
async def test_the_number_of_a_removed_replica_is_used_again() -> None:
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
async def test_remove_takes_the_named_replicas_and_others_at_random() -> None:
    async with running(FakeBackend(), replicas=6) as (fleet, _):
        left = await fleet.remove(3, ["Server-5"])
        assert len(left) == 3
        assert "Server-5" not in left
        assert names(fleet) == left


@scenario
async def test_remove_refuses_unknown_names_and_too_large_numbers_and_changes_nothing() -> None:
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
async def test_a_removed_replica_leaves_the_ring_at_once_and_stops_after_its_requests() -> None:
    backend = FakeBackend()
    async with running(backend) as (fleet, _):
        upstream = fleet.snapshot.upstreams[1]
        upstream.acquire()
        removing = asyncio.create_task(fleet.remove(1, ["Server-2"]))
        await pass_time(0)
        await until(lambda: names(fleet) == ["Server-1", "Server-3"], within=0.1)
        await pass_time(4)
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
