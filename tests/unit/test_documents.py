"""The documents are true: options, rooms, dependencies, and the worked examples."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loadbalancer.settings import Settings, environment_name, option_name
from tests.harness import LoadBalancer, free_port

ROOT = Path(__file__).parent.parent.parent

IN_A_COPY = "TESTS_RUN_IN_A_COPY"


def test_the_readme_lists_every_option_with_its_default() -> None:
    rows = re.findall(r"^\| `(--[a-z-]+)` \| ([^|]+?) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    defaults = {option_name(name): field.default for name, field in Settings.model_fields.items()}
    told = {"None": "unset", "": "unset", "()": "unset", "False": "off"}
    assert dict(rows) == {
        option: told.get(str(default), f"`{default}`") for option, default in defaults.items()
    }


def test_the_compose_file_passes_every_option_on() -> None:
    passed = set(re.findall(r"^      (LB_[A-Z_]+):", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE))
    fixed = {"LB_HOST", "LB_PORT"}  # the image's own; LB_PUBLISH says where they appear
    assert passed == {environment_name(name) for name in Settings.model_fields} - fixed


def test_the_architecture_names_every_dependency_and_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    for dependency in re.findall(r'^    "([a-z-]+)>=', project, re.MULTILINE):
        assert re.search(rf"\b{dependency}\b", text), dependency
    for module in (ROOT / "loadbalancer").rglob("*.py"):
        if not module.name.startswith("__"):
            assert re.search(rf"\b{module.stem}\b", text), module


def git_apply(diff: str, folder: Path) -> None:
    # Line numbers in the documents may be old; the lines around a change must be there.
    command = ["git", "apply", "--unidiff-zero"]
    environ = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run(command, input=diff, text=True, cwd=folder, env=environ, capture_output=True)
    assert done.returncode == 0, f"{done.stderr}\nof\n{diff}"


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with every worked example of docs/extending.md in it."""
    folder = tmp_path_factory.mktemp("extended")
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "results")
    copy = shutil.copytree(ROOT, folder / "project", ignore=ignored)
    for diff in re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), re.DOTALL):
        git_apply(diff, copy)
    return copy


@pytest.mark.skipif(IN_A_COPY in os.environ, reason="this is the copy")
def test_the_worked_examples_pass_the_tests_that_they_name(extended: Path) -> None:
    sections = (ROOT / "docs" / "extending.md").read_text().split("\n## ")[1:]
    assert [section.split("\n")[0] for section in sections] == [
        *("A policy", "A backend", "An endpoint", "An option", "A metric")
    ]
    named = []
    for section in sections:
        changed = re.findall(r"^[+-](?![+-]{2} ).+$", section, re.MULTILINE)
        assert 0 < len(changed) < 30, section
        tried = re.search(r"^Tried by `(tests/[a-z_/]+\.py)`", section, re.MULTILINE)
        assert tried, section
        named.append(tried[1])
    subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=extended, check=True)
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *named],
        cwd=extended,
        env={**os.environ, IN_A_COPY: "1", "PYTHONPATH": str(extended)},
        check=True,
    )


@pytest.mark.skipif(IN_A_COPY in os.environ, reason="this is the copy")
def test_the_worked_backend_serves_from_a_server_that_runs_elsewhere(extended: Path) -> None:
    port = free_port()
    environ = {**os.environ, "PORT": str(port), "SERVER_ID": "elsewhere"}
    with subprocess.Popen([sys.executable, "-m", "server"], env=environ) as server:
        try:
            lb = LoadBalancer("--backend", "static", "--command", f"127.0.0.1:{port}", replicas=1)
            lb.wrap("env", "--chdir", str(extended))
            with lb:
                assert b"elsewhere" in lb.call("GET", "/home").body
                assert b"0.1.0" in lb.call("GET", "/lb/version").body
                assert b"lb_ejections_total 0.0" in lb.call("GET", "/lb/metrics").body
        finally:
            server.terminate()
