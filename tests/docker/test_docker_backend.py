"""The Docker backend with a real engine and real containers."""

import asyncio
import json
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from loadbalancer.errors import BackendError, BadRequestError
from loadbalancer.fleet.backends.base import Found, Instance, ReplicaSpec
from loadbalancer.fleet.backends.docker import DockerBackend
from tests.chaos.engine import SOCKET, BreakableEngine
from tests.docker.conftest import SERVER, docker

SPEC = ReplicaSpec("lbtest-1", 1)

pytestmark = pytest.mark.usefixtures("images")


@asynccontextmanager
async def opened(fleet: str, image: str = SERVER, network: str = "") -> AsyncIterator[DockerBackend]:
    backend = DockerBackend(
        image=image, replica_port=5000, fleet=fleet, chosen_network=network, in_container=False
    )
    await backend.open()
    try:
        backend.found = await backend.adopt()  # type: ignore[attr-defined]
        yield backend
    finally:
        await backend.close()


def inspect(name: str) -> dict[str, object]:
    details: dict[str, object] = json.loads(docker("inspect", name))[0]
    return details


def exists(name: str) -> bool:
    return name in docker("ps", "--all", "--format", "{{.Names}}").split()


async def home(instance: Instance) -> str:
    """Ask a replica for `/home` until it answers."""

    def ask() -> str:
        deadline = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(f"http://{instance.address}/home", timeout=1) as answer:
                    return str(json.load(answer)["message"])
            except OSError:
                assert time.monotonic() < deadline

    return await asyncio.to_thread(ask)


async def ended(instance: Instance) -> str:
    async with asyncio.timeout(20):
        return await instance.why_lost(10)


async def test_a_replica_is_a_container_with_its_name(fleet: str) -> None:
    async with opened(fleet) as backend:
        instance = await backend.start(SPEC)
        assert await home(instance) == "Hello from Server: lbtest-1"
        details = json.loads(docker("inspect", "lbtest-1"))[0]
        assert details["Id"] == instance.id
        assert details["Config"]["Hostname"] == "lbtest-1"
        assert "lbtest-1" in details["NetworkSettings"]["Networks"][f"loadbalancer-{fleet}"]["Aliases"]
        labels = details["Config"]["Labels"]
        assert labels["loadbalancer.fleet"] == fleet
        assert (labels["loadbalancer.hostname"], labels["loadbalancer.number"]) == ("lbtest-1", "1")
        await backend.stop(instance, 10)
        assert not exists("lbtest-1")
        await backend.stop(instance, 10)  # once more does no harm


async def test_several_replicas_start_at_the_same_time(fleet: str) -> None:
    async with opened(fleet) as backend:
        specs = [ReplicaSpec(f"lbtest-{number}", number) for number in range(1, 6)]
        instances = await asyncio.gather(*map(backend.start, specs))
        assert len({instance.address for instance in instances}) == 5
        await asyncio.gather(*(backend.stop(instance, 0) for instance in instances))


async def test_the_end_of_a_container_is_reported_with_code_and_last_output(
    fleet: str, image_with: Callable[[str], str]
) -> None:
    image = image_with("echo one; sleep 0.3; echo out of luck >&2; exit 3")
    async with opened(fleet, image) as backend:
        instance = await backend.start(SPEC)
        assert await ended(instance) == "exited with code 3; last output: one | out of luck"
        await backend.stop(instance, 5)


async def test_a_container_that_ends_at_once_says_why(fleet: str, image_with: Callable[[str], str]) -> None:
    async with opened(fleet, image_with("echo no licence; exit 4")) as backend:
        try:
            reason = await ended(instance := await backend.start(SPEC))
            await backend.stop(instance, 0)
        except BackendError as error:
            reason = str(error)
        assert reason.endswith("exited with code 4; last output: no licence")
        assert not exists("lbtest-1")


async def test_the_end_by_docker_kill_names_the_signal(fleet: str) -> None:
    async with opened(fleet) as backend:
        instance = await backend.start(SPEC)
        docker("kill", "lbtest-1")
        assert (await ended(instance)).startswith("killed by SIGKILL (exit code 137)")
        await backend.discard(instance)
        assert exists(f"lbtest-1-gone-{instance.id[:12]}"), "it says who is missing until it is replaced"
        replacement = await backend.start(SPEC)
        await backend.remove_leftovers(SPEC)
        await backend.stop(replacement, 0)


async def test_a_container_that_is_unhealthy_is_lost(fleet: str, image_with: Callable[[str], str]) -> None:
    image = image_with("echo feeling sick; sleep 60")
    check = f"FROM {image}\nHEALTHCHECK --interval=1s --retries=1 CMD exit 1\n"
    docker("build", "--tag", image, "-", stdin=check)
    async with opened(fleet, image) as backend:
        instance = await backend.start(SPEC)
        assert await ended(instance) == (
            "its health check says that it is unhealthy; last output: feeling sick"
        )
        await backend.discard(instance)
        replacement = await backend.start(SPEC)
        await backend.stop(replacement, 0)


async def test_a_container_that_somebody_else_removes_is_lost(fleet: str) -> None:
    async with opened(fleet) as backend:
        instance = await backend.start(SPEC)
        docker("rm", "--force", "lbtest-1")
        assert "killed by SIGKILL" in (reason := await ended(instance)) or "removed" in reason
        await backend.stop(instance, 1)


async def test_a_replica_that_ignores_sigterm_is_killed_after_the_grace(
    fleet: str, image_with: Callable[[str], str]
) -> None:
    async with opened(fleet, image_with("trap '' TERM; echo ready; while :; do sleep 1; done")) as backend:
        instance = await backend.start(SPEC)
        begun = time.monotonic()
        await backend.stop(instance, 1)
        assert time.monotonic() - begun >= 1
        assert not exists("lbtest-1")


async def test_a_second_stop_shortens_the_first(fleet: str, image_with: Callable[[str], str]) -> None:
    async with opened(fleet, image_with("trap '' TERM; while :; do sleep 1; done")) as backend:
        instance = await backend.start(SPEC)
        patient = asyncio.create_task(backend.stop(instance, 600))
        await asyncio.wait({patient}, timeout=0.2)  # so that the first is under way
        async with asyncio.timeout(20):
            await backend.stop(instance, 0)
            await patient
        assert not exists("lbtest-1")


async def test_the_name_of_a_discarded_container_is_free_at_once(fleet: str) -> None:
    async with opened(fleet) as backend:
        dead = await backend.start(SPEC)
        docker("pause", "lbtest-1")  # hung: it would never end by itself
        await backend.discard(dead)
        replacement = await backend.start(SPEC)
        assert await home(replacement) == "Hello from Server: lbtest-1"
        assert replacement.id != dead.id
        await backend.stop(replacement, 0)
    assert docker("ps", "--all", "--quiet", "--filter", f"id={dead.id}") == ""


async def test_a_missing_image_is_named(fleet: str) -> None:
    with pytest.raises(BackendError, match="there is no image 'lbtest-none:1': build it"):
        async with opened(fleet, "lbtest-none:1"):
            pass


async def test_a_missing_network_is_named(fleet: str) -> None:
    with pytest.raises(BackendError, match="there is no network 'lbtest-none'"):
        async with opened(fleet, network="lbtest-none"):
            pass


async def test_an_image_removed_meanwhile_is_named(fleet: str, image_with: Callable[[str], str]) -> None:
    image = image_with("sleep 60")
    async with opened(fleet, image) as backend:
        docker("rmi", "--force", image)
        with pytest.raises(BackendError, match=f"cannot start lbtest-1: there is no image '{image}'"):
            await backend.start(SPEC)
        docker("tag", SERVER, image)


async def test_a_foreign_container_keeps_its_name_and_goes_on(fleet: str) -> None:
    docker("run", "--detach", "--name", "lbtest-1", SERVER)
    try:
        async with opened(fleet) as backend:
            with pytest.raises(BackendError, match=r"name is taken .* \(docker rm -f lbtest-1\)"):
                await backend.start(SPEC)
        assert docker("inspect", "--format", "{{.State.Status}}", "lbtest-1") == "running"
    finally:
        docker("rm", "--force", "lbtest-1")


async def test_a_cancelled_start_leaves_nothing(fleet: str) -> None:
    async with opened(fleet) as backend:
        for delay in (0.0, 0.005, 0.02, 0.1):
            starting = asyncio.create_task(backend.start(SPEC))
            await asyncio.wait({starting}, timeout=delay)
            starting.cancel()
            outcome = (await asyncio.gather(starting, return_exceptions=True))[0]
            if isinstance(outcome, Instance):
                await backend.stop(outcome, 0)
            assert not exists("lbtest-1")


@pytest.mark.parametrize("hostname", ["a", "x" * 64])
async def test_hostnames_that_are_no_container_names_are_refused(fleet: str, hostname: str) -> None:
    async with opened(fleet) as backend:
        with pytest.raises(BadRequestError, match="cannot be the name of a container"):
            backend.check_name(hostname)


def leave(fleet: str, number: int, name: str = "", run: str = "run", label: str = "") -> str:
    """A container such as an earlier run may have left."""
    hostname = f"lbtest-{number}"
    marks = {"fleet": fleet, "hostname": hostname, "number": label or str(number)}
    options = [f"--label=loadbalancer.{key}={value}" for key, value in marks.items()]
    detach = ["--detach"] if run == "run" else []
    return docker(
        run,
        *detach,
        f"--name={name or hostname}",
        f"--env=SERVER_ID={hostname}",
        f"--network=loadbalancer-{fleet}",
        *options,
        SERVER,
    )


async def test_replicas_of_an_earlier_run_are_adopted_and_leftovers_cleared_away(fleet: str) -> None:
    docker("network", "create", f"--label=loadbalancer.fleet={fleet}", f"loadbalancer-{fleet}")
    alive = leave(fleet, 2)
    dead = leave(fleet, 3)
    docker("kill", "lbtest-3")
    half_made = leave(fleet, 4, run="create")
    leave(fleet, 2, name=f"lbtest-2-gone-{alive[:12]}")
    renamed = leave(fleet, 5, name="lbtest-5-gone-0123456789ab")
    senseless = leave(fleet, 9, label="nine")
    async with opened(fleet) as backend:
        found: list[Found] = backend.found  # type: ignore[attr-defined]
        assert [one.spec for one in found] == [
            ReplicaSpec(f"lbtest-{number}", number) for number in (2, 3, 4, 5)
        ]
        instances = [one.instance for one in found]
        assert instances[1:] == [None, None, None]
        assert instances[0] is not None
        assert instances[0].id == alive
        assert await home(instances[0]) == "Hello from Server: lbtest-2"
        left = docker("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label=loadbalancer.fleet={fleet}")
        assert left.split() == [alive], f"without {dead}, {half_made}, {renamed}, {senseless}"
        docker("kill", "lbtest-2")
        assert (await ended(instances[0])).startswith("killed by SIGKILL")
        await backend.stop(instances[0], 0)


@pytest.mark.skipif(not SOCKET.exists(), reason="the engine is not behind a socket")
async def test_containers_that_ended_while_the_engine_was_away_are_found(
    fleet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with BreakableEngine(tmp_path / "docker.sock") as road:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{road.path}")
        async with opened(fleet) as backend:
            monkeypatch.delenv("DOCKER_HOST")
            instances = [await backend.start(ReplicaSpec(f"lbtest-{n}", n)) for n in (1, 2, 3)]
            road.cut()
            docker("kill", "lbtest-1")
            docker("rm", "--force", "lbtest-2")
            with pytest.raises(BackendError, match="the Docker Engine cannot be reached"):
                await backend.start(ReplicaSpec("lbtest-4", 4))
            assert not any(instance.lost.done() for instance in instances)
            road.open = True
            assert (await ended(instances[0])).startswith("killed by SIGKILL")
            assert "removed" in (reason := await ended(instances[1])) or "SIGKILL" in reason
            docker("kill", "lbtest-3")  # heard of by the new subscription
            assert (await ended(instances[2])).startswith("killed by SIGKILL")
            await asyncio.gather(*(backend.stop(instance, 0) for instance in instances))


async def test_a_missing_engine_gives_one_sentence(fleet: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    with pytest.raises(BackendError, match="the Docker Engine cannot be reached: is it running"):
        async with opened(fleet):
            pass
