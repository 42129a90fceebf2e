"""Owners of background tasks, on a virtual clock."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from structlog.testing import capture_logs

from loadbalancer.fleet.waiting import first_of
from loadbalancer.tasks import Jobs, Service, TaskCancelledError, with_helpers
from tests.unit.fleet.fakes import now, pass_time, run


def task_called(name: str) -> "asyncio.Task[Any]":
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == name]
    return task


async def forever() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise ValueError("a defect")


def test_a_service_is_resumed_after_an_error_and_after_a_cancellation() -> None:
    starts: list[float] = []

    async def work() -> None:
        starts.append(round(now(), 3))
        if len(starts) == 1:
            raise ValueError("a defect")
        if len(starts) == 3:
            return
        await forever()

    async def main() -> None:
        service = Service(work, "work")
        service.start()
        await pass_time(1)
        task_called("work").cancel()
        await service.ended
        assert starts == [0.0, 0.1, 1.2]

    with capture_logs() as logs:
        run(main())
    assert [(line["event"], line["task"]) for line in logs] == [
        ("background task failed", "work"),
        ("background task was cancelled", "work"),
    ]
    assert isinstance(logs[0]["exc_info"], ValueError), "with its trace"


def test_a_service_that_fails_again_and_again_pauses_longer_up_to_ten_seconds() -> None:
    starts: list[float] = []

    async def work() -> None:
        starts.append(now())
        await pass_time(20 if len(starts) == 12 else 0)
        raise ValueError

    async def main() -> None:
        service = Service(work, "work")
        service.start()
        await pass_time(100)
        await service.stop()

    with capture_logs():
        run(main())
    gaps = [round(later - earlier, 3) for earlier, later in itertools.pairwise(starts)]
    assert gaps[:9] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert gaps[11] == 20.1, "it was steady: the pause is short again"


@pytest.mark.parametrize("moment", [0.0, 0.05])
def test_a_service_that_is_stopped_ends_without_a_line_in_the_log(moment: float) -> None:
    """At the second moment it is between a fault and its resumption."""
    begun = 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        if moment:
            raise ValueError
        await forever()

    async def main() -> None:
        service = Service(work, "work")
        service.start()
        await pass_time(moment)
        faults = len(logs)
        await service.stop()
        assert service.ended.done()
        await pass_time(60)
        assert begun == 1
        assert len(logs) == faults

    with capture_logs() as logs:
        run(main())


def test_jobs_log_faults_but_neither_expected_errors_nor_their_own_end() -> None:
    async def refuse() -> None:
        raise KeyError

    async def main() -> None:
        jobs = Jobs(KeyError)
        jobs.start(fail(), "failing")
        jobs.start(refuse(), "refusing")
        jobs.start(forever(), "cancelled by another")
        await pass_time(0)
        task_called("cancelled by another").cancel()
        await jobs.finish()
        jobs.start(forever(), "cancelled by its owner")
        await pass_time(0)
        await jobs.cancel()

    with capture_logs() as logs:
        run(main())
    assert [line["task"] for line in logs] == ["failing", "cancelled by another"]


@pytest.mark.parametrize("kill", [lambda task: task.cancel(), None])
def test_the_fault_of_a_helper_ends_the_work(kill: Callable[["asyncio.Task[Any]"], object] | None) -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await forever()
        finally:
            ended.append("work")

    async def main() -> None:
        helper: Coroutine[Any, Any, None] = forever() if kill else fail()
        working = asyncio.create_task(with_helpers(work(), helper))
        await pass_time(0)
        await pass_time(0)
        if kill:
            kill(task_called("forever"))
        with pytest.raises(TaskCancelledError if kill else ValueError):
            await working
        assert ended == ["work"]

    run(main())


def test_helpers_may_end_first_and_are_cancelled_with_the_work() -> None:
    async def work() -> str:
        await pass_time(1)
        return "done"

    async def helper() -> None:
        return

    async def main() -> None:
        assert await with_helpers(work(), helper(), forever()) == "done"
        assert len(asyncio.all_tasks()) == 1

    run(main())


def test_work_that_somebody_cancels_is_an_error_and_not_the_end_of_the_caller() -> None:
    async def main() -> None:
        waiting = asyncio.create_task(first_of(work=forever()))
        await pass_time(0)
        await pass_time(0)
        task_called("forever").cancel()
        with pytest.raises(TaskCancelledError, match="'forever'"):
            await waiting

    run(main())
