"""Of several load balancers that take over one fleet at the same moment, one becomes its owner."""

import asyncio
import os
import random
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import pytest
from aiodocker import Docker

from loadbalancer.errors import BackendError
from loadbalancer.fleet.backends.ownership import (
    KIND,
    PROCESS,
    SINCE,
    WHERE,
    WHO,
    Ownership,
    process_identity,
)
from tests.docker.conftest import docker
from tests.harness import LoadBalancer

LABEL = "loadbalancer.fleet"


@pytest.fixture
async def engine() -> AsyncIterator[Docker]:
    async with Docker() as client:
        yield client


@pytest.fixture
def living() -> Iterator[list[int]]:
    """Process ids that stand for load balancers that are alive."""
    with ExitStack() as stack:
        processes = [stack.enter_context(subprocess.Popen(["sleep", "600"])) for _ in range(5)]
        for process in processes:
            stack.callback(process.kill)
        yield [process.pid for process in processes]


def owned_by_a_dead_one(fleet: str, claim: str = "") -> None:
    """The claim of a load balancer that was killed."""
    dead = {KIND: PROCESS, WHERE: socket.gethostname(), WHO: "1", SINCE: "before the machine started"}
    labels = [f"--label={key}={value}" for key, value in {LABEL: fleet, **dead}.items()]
    docker("volume", "create", *labels, claim or f"loadbalancer-{fleet}")


def claims(fleet: str) -> list[str]:
    return docker("volume", "ls", "--quiet", "--filter", f"label={LABEL}={fleet}").split()


async def outcome(ownership: Ownership) -> str:
    try:
        await ownership.take()
    except BackendError as error:
        assert "another load balancer runs the fleet" in str(error)  # noqa: PT017 - one of several outcomes
        return "refused"
    return "owner"


class Slow(Ownership):
    """Waits after it has found that the owner is dead, and before it removes the claim."""

    def __init__(self, docker: Docker, fleet: str, label: str, owner: dict[str, str]) -> None:
        super().__init__(docker, fleet, label, owner)
        self.waits = asyncio.Event()
        self.proceed = asyncio.Event()

    async def _delete(self, claim: str) -> None:
        self.waits.set()
        await self.proceed.wait()
        await super()._delete(claim)


async def test_a_slow_load_balancer_does_not_remove_the_claim_of_a_living_one(
    fleet: str, engine: Docker, living: list[int]
) -> None:
    owned_by_a_dead_one(fleet)
    slow = Slow(engine, fleet, LABEL, process_identity(living[0]))
    quick = Ownership(engine, fleet, LABEL, process_identity(living[1]))
    taking = asyncio.create_task(outcome(slow))
    await slow.waits.wait()
    outcomes = [await outcome(quick)]
    slow.proceed.set()
    outcomes.append(await taking)
    assert sorted(outcomes) == ["owner", "refused"]
    assert claims(fleet) == [f"loadbalancer-{fleet}"]
    await (quick if outcomes[0] == "owner" else slow).give_back()
    assert claims(fleet) == []


async def test_claims_of_a_load_balancer_that_died_during_a_takeover_are_removed(
    fleet: str, engine: Docker, living: list[int]
) -> None:
    owned_by_a_dead_one(fleet)
    heir = Ownership(engine, fleet, LABEL, process_identity(living[0]))
    dead = {KIND: PROCESS, WHERE: socket.gethostname(), WHO: "1", SINCE: "before the machine started"}
    owned_by_a_dead_one(fleet, heir._removal_of(f"loadbalancer-{fleet}", dead))
    owned_by_a_dead_one(fleet, f"loadbalancer-{fleet}-removal-of-long-ago")
    assert await outcome(heir) == "owner"
    await heir.give_back()
    assert claims(fleet) == []


async def test_one_of_five_load_balancers_at_the_same_moment_becomes_the_owner(
    fleet: str, engine: Docker, living: list[int]
) -> None:
    rng = random.Random(1)

    async def take_later(pid: int) -> tuple[Ownership, str]:
        ownership = Ownership(engine, fleet, LABEL, process_identity(pid))
        await asyncio.sleep(rng.random() * 0.02)
        return ownership, await outcome(ownership)

    for _ in range(20):
        owned_by_a_dead_one(fleet)
        taken = await asyncio.gather(*map(take_later, living))
        owners = [ownership for ownership, result in taken if result == "owner"]
        assert len(owners) == 1, taken
        await owners[0].give_back()
        assert claims(fleet) == []


@pytest.mark.usefixtures("images")
def test_one_of_two_load_balancers_that_start_together_adopts_the_fleet(fleet: str) -> None:
    options = ("--backend", "docker", "--fleet", fleet)
    first = LoadBalancer(*options, replicas=2)
    first.start()
    before = {name: one["id"] for name, one in first.state().items()}
    first.kill()
    heirs = [LoadBalancer(*options, replicas=2) for _ in range(2)]
    started = [
        subprocess.Popen(heir._argv, stderr=subprocess.PIPE, env={**os.environ}, text=True) for heir in heirs
    ]
    try:
        ended, log = next_to_end(started)
        assert ended.returncode == 1
        assert f"another load balancer runs the fleet '{fleet}'" in log
        (left,) = [process for process in started if process is not ended]
        assert left.stderr is not None
        adopted: dict[str, str] = {}
        while len(adopted) < 2:
            line = left.stderr.readline()
            assert "replica starting" not in line
            if '"replica up"' in line:
                adopted[line.split('"replica": "')[1].split('"')[0]] = line.split('"id": "')[1].split('"')[0]
        assert adopted == {name: identifier[:12] for name, identifier in before.items()}
        left.terminate()
        left.communicate(timeout=30)
        assert left.returncode == 0
    finally:
        for process in started:
            process.kill()
            process.wait()


def next_to_end(processes: list["subprocess.Popen[str]"]) -> tuple["subprocess.Popen[str]", str]:
    """The one that ends first, and its log."""
    pids = {process.pid: process for process in processes}
    done = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    assert done is not None
    ended = pids[done.si_pid]
    return ended, ended.communicate(timeout=30)[1]
