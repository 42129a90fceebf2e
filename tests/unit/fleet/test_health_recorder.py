"""Reports of the data path about a replica: refused connections, and failures in a row."""

import asyncio

from tests.unit.fleet.fakes import FakeBackend, names, now, pass_time, running, scenario, until


@scenario
async def test_refused_connections_count_as_missed_heartbeats() -> None:
    backend = FakeBackend()
    async with running(backend, max_fail_count=3) as (fleet, journal):
        begun = now()
        upstream = fleet.snapshot.upstreams[1]
        for _ in range(3):
            upstream.record_refusal()
            await pass_time(0.01)
        await until(lambda: "Server-2" not in names(fleet), within=0.1)
        assert now() - begun < 0.2, "the fleet does not wait for the heartbeats"
        assert (await fleet.describe()).replicas[1].reason == (
            "missed 3 heartbeats in a row: it refused a connection"
        )
        assert journal.of("missed") == ["Server-2"] * 3


@scenario
async def test_a_good_heartbeat_makes_up_for_a_refused_connection() -> None:
    backend = FakeBackend()
    async with running(backend, max_fail_count=2) as (fleet, journal):
        for _ in range(5):
            fleet.snapshot.upstreams[0].record_refusal()
            await pass_time(1.5)
        assert journal.of("down") == []


@scenario
async def test_failures_in_a_row_eject_a_replica_for_longer_each_time() -> None:
    backend = FakeBackend()
    async with running(backend, eject_after=5, eject=5.0) as (fleet, journal):
        for seconds in (5.0, 10.0, 20.0):
            upstream = fleet.snapshot.upstreams[0]
            for _ in range(5):
                upstream.record_failure()
            await until(lambda: names(fleet) == ["Server-2", "Server-3"], within=0.1)
            state = (await fleet.describe()).replicas[0]
            assert (state.state, state.id) == ("down", backend.instance_of("Server-1").id)
            assert state.reason == f"ejected for {seconds:g} s after 5 failed requests in a row"
            assert fleet.census()["down"] == 1
            took = await until(lambda: len(fleet.snapshot.upstreams) == 3, within=seconds + 1)
            assert abs(took - seconds) < 0.1
        assert journal.of("down") == [], "an ejected replica is not replaced"
        await pass_time(60)
        for _ in range(5):
            fleet.snapshot.upstreams[0].record_failure()
        await until(lambda: len(fleet.snapshot.upstreams) == 2, within=0.1)
        assert await until(lambda: len(fleet.snapshot.upstreams) == 3, within=6) < 5.1, (
            "the ejection time was reset"
        )


@scenario
async def test_a_success_between_failures_prevents_an_ejection() -> None:
    async with running(FakeBackend()) as (fleet, journal):
        upstream = fleet.snapshot.upstreams[0]
        for _ in range(20):
            for _ in range(4):
                upstream.record_failure()
            upstream.record_answer(200)
        await pass_time(1)
        assert journal.of("ejected") == []


@scenario
async def test_never_more_than_half_of_the_fleet_is_ejected() -> None:
    async with running(FakeBackend(), replicas=5) as (fleet, journal):
        for upstream in fleet.snapshot.upstreams:
            for _ in range(10):
                upstream.record_failure()
        await pass_time(1)
        assert len(journal.of("ejected")) == 2
        assert len(fleet.snapshot.upstreams) == 3


@scenario
async def test_a_single_replica_is_never_ejected() -> None:
    async with running(FakeBackend(), replicas=1) as (fleet, journal):
        for _ in range(50):
            fleet.snapshot.upstreams[0].record_failure()
        await pass_time(1)
        assert journal.of("ejected") == []


@scenario
async def test_an_ejected_replica_can_be_replaced_or_removed() -> None:
    backend = FakeBackend()
    async with running(backend, replicas=6) as (fleet, journal):
        first, second = fleet.snapshot.upstreams[:2]
        for upstream in (first, second):
            for _ in range(5):
                upstream.record_failure()
        await until(lambda: len(journal.of("ejected")) == 2, within=0.1)
        backend.die("Server-1")
        await until(lambda: "Server-1" in names(fleet), within=1)
        assert await fleet.remove(1, ["Server-2"]) == [f"Server-{number}" for number in (1, 3, 4, 5, 6)]
        await pass_time(30)
        assert names(fleet) == [f"Server-{number}" for number in (1, 3, 4, 5, 6)]
        assert journal.of("readmitted") == []


@scenario
async def test_the_share_of_a_replacement_grows_with_slow_start() -> None:
    backend = FakeBackend()
    async with running(backend, slow_start=10.0) as (fleet, _):
        assert fleet.snapshot.upstreams[0].share == 1.0, "the first instances have their full share at once"
        backend.die("Server-1")
        await until(lambda: backend.started[-1][1] == "Server-1" and len(names(fleet)) == 3, within=2)
        upstream = fleet.snapshot.upstreams[0]
        shares = []
        for _ in range(12):
            shares.append(upstream.share)
            await pass_time(1.0)
        assert shares == sorted(shares)
        assert shares[0] < 0.2
        assert shares[-1] == 1.0


@scenario
async def test_no_replica_is_ejected_when_ejection_is_off() -> None:
    async with running(FakeBackend(), eject_after=0) as (fleet, journal):
        for _ in range(50):
            fleet.snapshot.upstreams[0].record_failure()
        await asyncio.sleep(0)
        assert journal.of("ejected") == []
