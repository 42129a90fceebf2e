"""The short form of `make chaos`: each fault once, with replicas as processes."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.__main__ import REPORT
from tests.chaos.faults import (
    FAULTS,
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


async def test_no_request_fails_when_a_replica_is_killed(system: System) -> None:
    outcome = await kill_one(system)
    assert not outcome.failed
    assert outcome.recovery is not None
    assert outcome.recovery <= 2.0


async def test_no_request_fails_after_a_hanging_replica_is_detected(system: System) -> None:
    outcome = await freeze_one(system)
    assert not outcome.failed
    assert outcome.recovery is not None
    assert outcome.recovery <= 3 * (1.0 + 1.0) + 2.0, "three missed heartbeats and two seconds"


async def test_no_request_fails_when_a_busy_replica_is_removed(system: System) -> None:
    outcome = await remove_busy(system)
    assert not outcome.failed
    assert outcome.requests["200"] > 100


async def test_no_request_fails_when_replicas_are_added_and_removed(system: System) -> None:
    assert not (await add_and_remove(system, times=10)).failed


async def test_requests_wait_when_all_replicas_are_killed(system: System) -> None:
    outcome = await kill_all(system)
    assert not outcome.failed
    assert outcome.recovery is not None
    assert outcome.recovery <= 4.0


def test_the_page_has_the_words_of_its_generator() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "chaos.md").read_text()
    pattern = re.sub(r"\\{\w+(:g)?\\}", "(.+)", re.escape(REPORT).replace(r"\{rows\}", r"((?:\|.*\|\n?)+)"))
    assert re.fullmatch(pattern, page)
    names = {line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")}
    assert {name for name in names if not name.startswith("engine restarted")} == {"fault", *FAULTS}
