"""Faults of the load balancer itself: each background task of the fleet is killed in turn, on a virtual
clock.

To kill a task is to cancel it, or to raise an error at the place where it waits. No replica may suffer from
it, and the log must name the task.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from loadbalancer.errors import BackendError, BadRequestError
from loadbalancer.fleet.fleet import Fleet
from loadbalancer.fleet.replica import Replica
from loadbalancer.tasks import TaskCancelledError
from tests.unit.fleet.fakes import FakeBackend, Journal, make_fleet, names, pass_time, run, running, until

Kill = Callable[["asyncio.Task[Any]"], None]


def cancel(task: "asyncio.Task[Any]") -> None:
    task.cancel()


def make_fail(task: "asyncio.Task[Any]") -> None:
    """Raise an error where the task waits; a task that waits for another is cancelled by way of that one."""
    waiter = task._fut_waiter  # type: ignore[attr-defined]
    while isinstance(waiter, asyncio.Task):
        waiter = waiter._fut_waiter  # type: ignore[attr-defined]
    if waiter is not None and not waiter.done():
        waiter.set_exception(ZeroDivisionError("a defect"))


def background() -> "list[asyncio.Task[Any]]":
    mine = asyncio.current_task()
    tasks = [task for task in asyncio.all_tasks() if task is not mine and task.get_name() != "of the test"]
    return sorted(tasks, key=lambda task: task.get_name())


def ask(work: Awaitable[Any]) -> "asyncio.Task[Any]":
    """Start a task that belongs to the test, and not to the load balancer."""
    return asyncio.create_task(work, name="of the test")  # type: ignore[arg-type]


async def is_whole(fleet: Fleet, backend: FakeBackend, members: list[str]) -> None:
    """Wait until the fleet has these members, all in rotation, and nothing else."""
    await until(lambda: names(fleet) == members and len(backend.running) == len(members), within=40)
    state = await fleet.describe()
    assert [replica.hostname for replica in state.replicas] == members
    assert state.desired == len(members)


kinds = pytest.mark.parametrize("kill", [cancel, make_fail])


@kinds
def test_a_fleet_at_rest_keeps_its_replicas_whichever_task_is_killed(kill: Kill) -> None:
    async def main() -> None:
        backend = FakeBackend()
        async with running(backend) as (fleet, journal):
            before = set(backend.running)
            victims = [task.get_name() for task in background()]
            assert len(victims) >= 9, victims
            for index, victim in enumerate(victims):
                mark = len(logs)
                kill(background()[index])
                await pass_time(12)  # A supervisor that fails again sooner is resumed later.
                assert any(line["log_level"] == "error" for line in logs[mark:]), (
                    f"{victim} was killed silently"
                )
                await is_whole(fleet, backend, ["Server-1", "Server-2", "Server-3"])
                assert [task.get_name() for task in background()] == victims, "everything goes on"
            assert set(backend.running) == before, "no replica was replaced for it"
            assert journal.of("down") == journal.of("missed") == []

    with capture_logs() as logs:
        run(main())


@kinds
def test_health_is_still_recorded_after_a_fault(kill: Kill) -> None:
    async def main() -> None:
        backend = FakeBackend()
        async with running(backend, eject=5.0) as (fleet, journal):
            for task in background():
                kill(task)
            await pass_time(2)
            for _ in range(5):
                fleet.snapshot.upstreams[0].record_failure()
            await until(lambda: journal.of("ejected") == ["Server-1"], within=0.1)
            for task in background():  # now while it is ejected: it must not stay so
                kill(task)
            await until(lambda: journal.of("readmitted") == ["Server-1"], within=6)
            await pass_time(2)
            backend.hang("Server-2")
            await until(lambda: journal.of("down") == ["Server-2"], within=10)
            await is_whole(fleet, backend, ["Server-1", "Server-2", "Server-3"])

    with capture_logs():
        run(main())


def kill_at_each_moment(
    begin: Callable[[Fleet, FakeBackend], "asyncio.Task[Any] | None"],
    check: Callable[[Fleet, FakeBackend, "asyncio.Task[Any] | None"], Awaitable[None]],
    kill: Kill,
    moments: tuple[float, ...],
) -> int:
    """Begin something in a new fleet, kill one task after a while, and check how it ends, for all tasks.

    Returns:
        How many times a task was killed.
    """
    kills = 0
    for moment in moments:
        index = 0
        while True:
            killed = False

            async def main(moment: float = moment, index: int = index) -> None:
                nonlocal killed
                backend = FakeBackend()
                async with running(backend, drain=1.0) as (fleet, _):
                    change = begin(fleet, backend)
                    await pass_time(moment)
                    victims = background()
                    if index < len(victims):
                        killed = True
                        kill(victims[index])
                    await pass_time(20)
                    await check(fleet, backend, change)

            with capture_logs():
                run(main())
            if not killed:
                break
            kills += 1
            index += 1
    return kills


THREE = ["Server-1", "Server-2", "Server-3"]


@kinds
def test_an_add_is_whole_or_undone_whichever_task_is_killed(kill: Kill) -> None:
    def begin(fleet: Fleet, backend: FakeBackend) -> "asyncio.Task[Any]":
        return ask(fleet.add(2, ["a", "b"]))

    async def check(fleet: Fleet, backend: FakeBackend, change: "asyncio.Task[Any] | None") -> None:
        assert change is not None
        assert change.done(), "the client has its answer"
        error = change.exception()
        assert isinstance(error, TaskCancelledError | ZeroDivisionError | None)
        await is_whole(fleet, backend, THREE if error else [*THREE, "a", "b"])

    assert kill_at_each_moment(begin, check, kill, (0.0, 0.1, 0.2005, 0.3)) > 40


@kinds
def test_a_removal_takes_place_whichever_task_is_killed(kill: Kill) -> None:
    def begin(fleet: Fleet, backend: FakeBackend) -> "asyncio.Task[Any]":
        fleet.snapshot.upstreams[1].acquire()  # it drains for a second
        return ask(fleet.remove(1, ["Server-2"]))

    async def check(fleet: Fleet, backend: FakeBackend, change: "asyncio.Task[Any] | None") -> None:
        assert change is not None
        assert change.done(), "the client has its answer"
        change.exception()
        await is_whole(fleet, backend, ["Server-1", "Server-3"])

    assert kill_at_each_moment(begin, check, kill, (0.01, 0.5, 1.005)) > 25


@kinds
def test_a_replacement_comes_whichever_task_is_killed(kill: Kill) -> None:
    def begin(fleet: Fleet, backend: FakeBackend) -> None:
        backend.die("Server-1")

    async def check(fleet: Fleet, backend: FakeBackend, change: "asyncio.Task[Any] | None") -> None:
        await is_whole(fleet, backend, THREE)

    assert kill_at_each_moment(begin, check, kill, (0.0, 0.1, 0.3, 0.35)) > 35


@kinds
def test_closing_leaves_nothing_whichever_task_is_killed(kill: Kill) -> None:
    """`running` closes the fleet again, which must do no harm, and looks for what is left."""

    def begin(fleet: Fleet, backend: FakeBackend) -> "asyncio.Task[Any]":
        fleet.snapshot.upstreams[1].acquire()
        return ask(fleet.close())

    async def check(fleet: Fleet, backend: FakeBackend, change: "asyncio.Task[Any] | None") -> None:
        assert change is not None
        assert change.done()
        assert not backend.running

    assert kill_at_each_moment(begin, check, kill, (0.005, 0.5)) > 5


def test_an_error_of_our_own_in_a_change_is_logged_as_such() -> None:
    class Broken(Journal):
        def replica_event(self, event: str, replica: Replica, reason: str | None = None) -> None:
            if event == "starting":
                raise ZeroDivisionError("a defect")

    async def main() -> None:
        backend = FakeBackend()
        async with running(backend) as (fleet, _):
            with pytest.raises(BadRequestError):
                await fleet.add(1, ["Server-1"])
            fleet._roster._observer = Broken()
            with pytest.raises(ZeroDivisionError):
                await fleet.add(1)
            fleet._roster._observer = Journal()

    with capture_logs() as logs:
        run(main())
    told = [
        (line["event"], line["log_level"]) for line in logs if "change" in line["event"] or "task" in line
    ]
    assert told == [("change refused", "info"), ("background task failed", "error")]
    assert isinstance(logs[-1]["exc_info"], ZeroDivisionError)


def test_close_reports_replicas_that_cannot_be_stopped() -> None:
    async def main() -> None:
        backend = FakeBackend()
        fleet, _ = make_fleet(backend)
        await fleet.open()
        await until(lambda: len(fleet.snapshot.upstreams) == 3, within=5)
        backend.unreachable = True
        with pytest.raises(
            BackendError, match="3 replicas were left behind: Server-1 has left the fleet but"
        ):
            await fleet.close()
        assert backend.closed

    with capture_logs():
        run(main())


def test_heartbeats_that_cannot_be_sent_count_neither_as_good_nor_as_missed() -> None:
    async def main() -> None:
        backend = FakeBackend()
        async with running(backend, max_fail_count=4) as (fleet, journal):
            backend.hang("Server-1")
            await until(lambda: len(journal.of("missed")) == 2, within=10)
            backend.no_files = True
            await pass_time(60)
            assert journal.of("missed") == ["Server-1"] * 3, "one more was on its way"
            assert [replica.missed for replica in (await fleet.describe()).replicas] == [3, 0, 0]
            backend.no_files = False
            await until(lambda: journal.of("down") == ["Server-1"], within=3)
            await pass_time(5)
            backend.no_files = True
            adding = asyncio.create_task(fleet.add(1, ["new"]))
            await pass_time(100)
            assert not adding.done(), "it has not answered yet, and nobody has asked it"
            backend.no_files = False
            assert "new" in await adding

    with capture_logs():
        run(main())
