"""The whole system with containers, as `docker compose up` starts it."""

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.docker.conftest import ROOT, docker
from tests.harness import LoadBalancer, eventually, free_port, request

pytestmark = pytest.mark.usefixtures("images")


@dataclass
class Compose:
    """One `docker compose` project of this repository's file."""

    project: str
    port: int

    def run(self, *args: str) -> str:
        done = subprocess.run(
            ["docker", "compose", "--project-directory", str(ROOT), "--project-name", self.project, *args],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "LB_PUBLISH": f"127.0.0.1:{self.port}"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def call(self, method: str, path: str, body: Any = None) -> Any:
        return request(self.port, method, path, body).json["message"]

    def state(self) -> dict[str, dict[str, Any]]:
        return {one["hostname"]: one for one in self.call("GET", "/lb/replicas")["replicas"]}

    def is_up(self, n: int) -> bool:
        """Whether n replicas are in rotation; False too while nobody answers."""
        try:
            return [one["state"] for one in self.state().values()] == ["up"] * n
        except (OSError, ValueError):
            return False

    def containers(self) -> list[str]:
        """The fleet's containers, also those that have ended."""
        label = f"label=loadbalancer.fleet={self.project}"
        return sorted(docker("ps", "--all", "--format", "{{.Names}}", "--filter", label).split())


@pytest.fixture
def compose() -> Iterator[Compose]:
    project = Compose(f"lbtest{uuid.uuid4().hex[:8]}", free_port())
    project.run("up", "--detach")
    try:
        eventually(lambda: project.is_up(3), "three replicas are up")
        yield project
    finally:
        project.run("down")
        left = project.containers()
        if left:
            docker("rm", "--force", *left)
        networks = docker("network", "ls", "--quiet", "--filter", f"name={project.project}").split()
        assert (left, networks) == ([], []), "down leaves nothing behind"


def homes(compose: Compose, requests: int = 60) -> set[str]:
    return {compose.call("GET", "/home") for _ in range(requests)}


def test_three_containers_serve_under_their_names(compose: Compose) -> None:
    names = ["Server-1", "Server-2", "Server-3"]
    assert compose.call("GET", "/rep") == {"N": 3, "replicas": names}
    assert compose.containers() == names
    assert homes(compose) == {f"Hello from Server: {name}" for name in names}
    for name, one in compose.state().items():
        details = json.loads(docker("inspect", name))[0]
        assert details["Id"] == one["id"]
        assert name in details["NetworkSettings"]["Networks"][f"{compose.project}_default"]["Aliases"]
    lb = f"{compose.project}-lb-1"
    status = docker("exec", lb, "sh", "-c", "cat /proc/1/status")
    assert "\nUid:\t65532\t65532\t65532\t65532\n" in status, "it runs as nobody in particular"
    assert "\nCapEff:\t0000000000000000\n" in status
    eventually(
        lambda: docker("inspect", "--format", "{{.State.Health.Status}}", lb) == "healthy", "it is healthy"
    )


def test_containers_are_added_and_removed_by_requests(compose: Compose) -> None:
    grown = compose.call("POST", "/add", {"n": 3, "hostnames": ["lbtest-a"]})
    assert grown["N"] == 6
    assert compose.containers() == sorted(grown["replicas"])
    assert homes(compose, 200) == {f"Hello from Server: {name}" for name in grown["replicas"]}
    shrunk = compose.call("DELETE", "/rm", {"n": 4, "hostnames": ["lbtest-a", "Server-1"]})
    assert shrunk["N"] == 2
    assert compose.containers() == sorted(shrunk["replicas"])
    refused = request(compose.port, "POST", "/add", {"n": 1, "hostnames": ["x"]})
    assert refused.status == 400
    assert "cannot be the name of a container" in refused.json["message"]


def test_an_add_with_the_name_of_a_foreign_container_fails_and_leaves_nothing(compose: Compose) -> None:
    docker("run", "--detach", "--name", "lbtest-taken", "loadbalancer-server:latest")
    try:
        before = compose.containers()
        reply = request(compose.port, "POST", "/add", {"n": 3, "hostnames": ["lbtest-free", "lbtest-taken"]})
        assert reply.status == 500
        assert "that name is taken by a container of somebody else" in reply.json["message"]
        assert compose.containers() == before
        assert compose.call("GET", "/rep")["N"] == 3
    finally:
        docker("rm", "--force", "lbtest-taken")


def test_a_killed_container_is_replaced_under_its_name(compose: Compose) -> None:
    before = compose.state()
    docker("kill", "Server-1")
    eventually(
        lambda: compose.is_up(3) and compose.state()["Server-1"]["id"] != before["Server-1"]["id"],
        "another container answers under its name",
    )
    after = compose.state()
    assert after["Server-1"]["number"] == 1
    assert after["Server-1"]["reason"].startswith("killed by SIGKILL")
    assert [after[name]["id"] for name in ("Server-2", "Server-3")] == [
        before[name]["id"] for name in ("Server-2", "Server-3")
    ]
    assert homes(compose) == {f"Hello from Server: Server-{number}" for number in (1, 2, 3)}
    eventually(lambda: compose.containers() == ["Server-1", "Server-2", "Server-3"], "the dead one is gone")


def test_replicas_outlive_a_killed_load_balancer_and_are_adopted(compose: Compose) -> None:
    compose.call("DELETE", "/rm", {"n": 1, "hostnames": ["Server-2"]})
    compose.call("POST", "/add", {"n": 2, "hostnames": ["lbtest-b"]})
    before = {name: (one["id"], one["number"]) for name, one in compose.state().items()}
    docker("kill", "--signal", "KILL", f"{compose.project}-lb-1")
    docker("kill", "Server-3")
    compose.run("up", "--detach")
    eventually(lambda: compose.is_up(4), "they are all up again")
    after = {name: (one["id"], one["number"]) for name, one in compose.state().items()}
    assert {name: number for name, (_, number) in after.items()} == {
        name: number for name, (_, number) in before.items()
    }
    assert [name for name in before if after[name] != before[name]] == ["Server-3"], (
        "it was dead, and is replaced"
    )
    assert len(compose.containers()) == 4


def test_the_load_balancer_also_runs_on_the_host(fleet: str) -> None:
    with LoadBalancer("--backend", "docker", "--fleet", fleet, replicas=2) as lb:
        assert lb.members() == ["Server-1", "Server-2"]
        answers = {lb.call("GET", "/home").json["message"] for _ in range(40)}
        assert answers == {"Hello from Server: Server-1", "Hello from Server: Server-2"}
        mark = lb.mark()
        docker("kill", "Server-2")
        lb.wait_for("replica up", replica="Server-2", after=mark)
        assert lb.call("POST", "/add", {"n": 1, "hostnames": ["lbtest-c"]}).json["message"]["N"] == 3


def test_an_image_that_exits_at_once_is_started_at_growing_intervals(
    fleet: str, image_with: Callable[[str], str]
) -> None:
    image = image_with("echo no licence; exit 4")
    lb = LoadBalancer("--backend", "docker", "--fleet", fleet, "--image", image, replicas=1)
    lb._replicas = 0  # it will never be up
    with lb:
        lb.wait_for("replica down", 3)
        state = lb.state()["Server-1"]
        assert state["restarts"] >= 2
        assert state["reason"].endswith("exited with code 4; last output: no licence")
        assert lb.call("GET", "/home").status == 503
        assert lb.call("GET", "/rep").json["message"] == {"N": 1, "replicas": ["Server-1"]}


def test_a_second_load_balancer_on_the_same_fleet_is_refused(fleet: str) -> None:
    options = ("--backend", "docker", "--fleet", fleet)
    with LoadBalancer(*options, replicas=1) as first:
        before = first.state()
        with pytest.raises(AssertionError, match=f"another load balancer runs the fleet '{fleet}'"):
            LoadBalancer(*options, replicas=1).start()
        assert first.state() == before
        first.kill()
        with LoadBalancer(*options, replicas=1) as heir:
            assert heir.state()["Server-1"]["id"] == before["Server-1"]["id"], "adopted"
    assert docker("volume", "ls", "--quiet", "--filter", f"label=loadbalancer.fleet={fleet}") == ""


def test_on_exit_keep_leaves_the_replicas_running(fleet: str) -> None:
    options = ("--backend", "docker", "--fleet", fleet)
    with LoadBalancer(*options, "--on-exit", "keep", replicas=2) as first:
        before = {name: one["id"] for name, one in first.state().items()}
        assert first.stop() == 0
    assert docker("inspect", "--format", "{{.State.Status}}", *before.values()).split() == ["running"] * 2
    with LoadBalancer(*options, replicas=2) as second:
        assert {name: one["id"] for name, one in second.state().items()} == before
