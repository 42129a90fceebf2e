"""Every rule of `make check` fails when it is broken: each is tried on a copy of the project."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.rules import lengths

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent

WRONG_IMPORTS = (
    ("loadbalancer.routing.keys", "loadbalancer.errors"),
    ("loadbalancer.routing.ring", "asyncio"),
    ("loadbalancer.telemetry.events", "loadbalancer.errors"),
    ("loadbalancer.proxy.router", "loadbalancer.fleet.fleet"),
    ("loadbalancer.proxy.retry", "loadbalancer.proxy.fast.lane"),
    ("loadbalancer.proxy.retry", "loadbalancer.proxy.asgi.lane"),
    ("loadbalancer.proxy.fast.pool", "loadbalancer.proxy.asgi.lane"),
    ("loadbalancer.proxy.asgi.body", "loadbalancer.proxy.fast.pool"),
    ("loadbalancer.proxy.headers", "loadbalancer.workers.messages"),
    ("loadbalancer.proxy.headers", "loadbalancer.admin.changes"),
    ("loadbalancer.admin.changes", "loadbalancer.proxy.headers"),
    ("loadbalancer.fleet.timing", "loadbalancer.proxy.headers"),
    ("loadbalancer.fleet.timing", "loadbalancer.admin.changes"),
    ("loadbalancer.workers.messages", "loadbalancer.fleet.timing"),
    ("loadbalancer.listening", "loadbalancer.workers.messages"),
    ("loadbalancer.tls", "loadbalancer.workers.messages"),
    ("loadbalancer.serving", "loadbalancer.app"),
    ("server.app", "loadbalancer.errors"),
    ("loadbalancer.errors", "server.app"),
    ("loadbalancer.app", "analysis.plots"),
    ("server.app", "analysis.plots"),
    ("analysis.plots", "pytest"),
)
"""Module, and what it must not import."""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of everything that the rules are about."""
    for folder in ("loadbalancer", "server", "analysis"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def check(tool: str, folder: Path) -> tuple[int, str]:
    """Run the lines of `make check` that name a tool; return the highest status, and the output."""
    recipe = subprocess.run(
        ["make", "--dry-run", "--silent", "check", f"BIN={BIN}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [line for line in recipe.splitlines() if tool in line]
    assert lines, f"make check does not run {tool}"
    results = [subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True) for line in lines]
    return max(result.returncode for result in results), "".join(r.stdout + r.stderr for r in results)


def append(folder: Path, module: str, line: str) -> int:
    """Append a line to a module; return its number."""
    path = folder / (module.replace(".", "/") + ".py")
    text = path.read_text() + line + "\n"
    path.write_text(text)
    return text.count("\n")


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_wrong_imports_are_found(copy: Path) -> None:
    lines = {
        (importer, imported): append(copy, importer, f"import {imported}")
        for importer, imported in WRONG_IMPORTS
    }
    (copy / "loadbalancer" / "elsewhere.py").touch()

    status, output = check("lint-imports", copy)

    assert status == 1
    told = " ".join(output.split())
    for (importer, imported), line in lines.items():
        assert re.search(rf"{re.escape(f'{importer} -> {imported}')} \([^)]*l\.{line}\b", told), (
            importer,
            imported,
        )
    assert "loadbalancer.elsewhere" in told, "a module has no place among the layers"
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]:
        assert f"{contract['name']} BROKEN" in told, "a contract is not tried by WRONG_IMPORTS"


def test_long_files_and_functions_are_found(tmp_path: Path) -> None:
    package = tmp_path / "loadbalancer"
    package.mkdir()
    (package / "fits.py").write_text("def fits():\n" + "    pass\n" * 59 + "x = 1\n" * 340)
    (package / "file.py").write_text("x = 1\n" * 401)
    (package / "function.py").write_text("class A:\n    async def long(self):\n" + "        pass\n" * 60)
    (package / "listed.py").write_text("x = 1\n" * 401)

    listed = {"loadbalancer/listed.py": "a reason", "loadbalancer/fits.py": "no longer needed"}

    assert list(lengths.faults(tmp_path, listed, {})) == [
        "loadbalancer/file.py:1: loadbalancer/file.py has 401 lines; the limit is 400",
        "loadbalancer/function.py:2: loadbalancer/function.py:long has 61 lines; the limit is 60",
        "loadbalancer/fits.py is listed as an exception in tests/rules/lengths.py, which it does not need",
    ]
    assert check("tests.rules.lengths", ROOT)[0] == 0


def test_unused_code_is_found(copy: Path) -> None:
    append(copy, "loadbalancer.routing.keys", "def nobody_calls_this() -> None: ...")
    (copy / "tests").mkdir()
    (copy / "tests" / "only.py").write_text("import loadbalancer.errors\n\n\ndef only_here() -> None: ...\n")
    append(copy, "loadbalancer.errors", "def only_tests_call_this() -> None: ...")
    append(copy, "tests.only", "loadbalancer.errors.only_tests_call_this()")

    status, output = check("vulture", copy)

    assert status == 3
    for name in ("nobody_calls_this", "only_tests_call_this", "only_here"):
        assert f"unused function '{name}'" in output


def test_missing_and_unused_dependencies_are_found(copy: Path) -> None:
    append(copy, "loadbalancer.errors", "import idna")
    replace(copy / "pyproject.toml", "dependencies = [", 'dependencies = ["vulture>=2",')

    status, output = check("deptry", copy)

    assert status == 1
    assert "'idna' imported but it is a transitive dependency" in output
    assert "'vulture' defined as a dependency but not used in the codebase" in output


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "[tool.ruff]",
            '[tool.setuptools.exclude-package-data]\nloadbalancer = ["py.typed"]\n[tool.ruff]',
            "loadbalancer/py.typed",
        ),
        ('"analysis*"]', '"analysis*", "tests*"]', "tests/"),
    ],
    ids=["py.typed is missing", "tests are in it"],
)
def test_a_wheel_with_other_contents_is_found(copy: Path, old: str, new: str, told: str) -> None:
    (copy / "tests").mkdir()
    (copy / "tests" / "__init__.py").touch()
    replace(copy / "pyproject.toml", old, new)

    status, output = check("wheel", copy)

    assert status == 1
    assert told in output


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "loadbalancer" / "py.typed").exists(), (
        "PEP 561; the check of the wheel sees that it is in it"
    )


def test_the_hooks_of_git_run_targets_that_ci_runs() -> None:
    targets = re.findall(r"entry: (make \w+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert targets == ["make check", "make test"]
    steps = (ROOT / ".ci" / "run").read_text()
    assert all(re.search(rf"^{target}\b", steps, re.MULTILINE) for target in targets)
