"""The short form of `make chaos`: each fault once, with replicas as processes."""

from collections.abc import Iterator

import pytest

from tests.chaos.faults import (
    System,
    add_and_remove,
    freeze_one,
    freeze_process,
    kill_all,
    kill_one,
    kill_process,
    remove_busy,
)
from tests.harness import LoadBalancer, replica


@pytest.fixture
def system() -> Iterator[System]:
    with LoadBalancer("--command", replica("odd")) as lb:
        yield System(lb, kill_process, freeze_process)


async def test_a_killed_replica_costs_no_request(system: System) -> None:
    outcome = await kill_one(system)
    assert not outcome.failed
    assert outcome.recovery is not None
    assert outcome.recovery <= 2.0


async def test_a_hung_replica_costs_no_request_that_comes_after_it_was_found(system: System) -> None:
    outcome = await freeze_one(system)
    assert not outcome.failed
    assert outcome.recovery is not None
    assert outcome.recovery <= 3 * (1.0 + 1.0) + 2.0, "the heartbeat budget and two seconds"


async def test_a_busy_replica_leaves_without_a_scratch(system: System) -> None:
    outcome = await remove_busy(system)
    assert not outcome.failed
    assert outcome.requests["200"] > 100


async def test_coming_and_going_costs_no_request(system: System) -> None:
    assert not (await add_and_remove(system, times=10)).failed


async def test_when_all_are_killed_requests_wait_for_the_first(system: System) -> None:
    outcome = await kill_all(system)
    assert not outcome.failed
    assert outcome.recovery is not None
    assert outcome.recovery <= 4.0
