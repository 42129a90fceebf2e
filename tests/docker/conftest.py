"""A real Docker Engine for the tests in this folder; they are skipped when none answers."""

import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SERVER = "loadbalancer-server:latest"


def docker(*args: str, stdin: str | None = None, timeout: float = 60) -> str:
    """Run a docker command; what it prints."""
    done = subprocess.run(["docker", *args], input=stdin, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"docker {' '.join(args)}: {done.stderr}"
    return done.stdout.strip()


def _engine_answers() -> bool:
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    if here and not _engine_answers():
        for item in here:
            item.add_marker(pytest.mark.skip(reason="no Docker Engine answers"))
    for item in here:
        item.add_marker(pytest.mark.docker)


@pytest.fixture(scope="session")
def images() -> None:
    """Both images, as the compose file builds them."""
    compose = ["docker", "compose", "--project-directory", str(ROOT), "build"]
    built = subprocess.run(compose, capture_output=True, text=True, timeout=600, env=os.environ)
    assert built.returncode == 0, built.stderr[-5000:]


@pytest.fixture
def fleet() -> Iterator[str]:
    """A name for a fleet of a test's own; at the end nothing of it may be left."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    yield name
    left = docker("ps", "--all", "--quiet", "--filter", f"label=loadbalancer.fleet={name}").split()
    networks = docker("network", "ls", "--quiet", "--filter", f"label=loadbalancer.fleet={name}").split()
    if left:
        docker("rm", "--force", *left)
    if networks:
        docker("network", "rm", *networks)
    assert (left, networks) == ([], []), "containers or networks were left behind"


@pytest.fixture
def image_with(images: None) -> Iterator[Callable[[str], str]]:
    """Makes an image like the sample replica's, but with another command."""
    made = []

    def make(shell: str) -> str:
        tag = f"lbtest-{uuid.uuid4().hex[:8]}"
        script = shell.replace('"', '\\"')
        docker("build", "--tag", tag, "-", stdin=f'FROM {SERVER}\nCMD ["sh", "-c", "{script}"]\n')
        made.append(tag)
        return tag

    yield make
    for tag in made:
        docker("rmi", "--force", tag)
