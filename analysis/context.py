"""The context of an experiment: its options, its progress bars, and the file of its result."""

import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

Backend = Literal["process", "docker"]

PACKAGES = ("loadbalancer", "uvloop", "httptools", "quart", "hypercorn", "aiohttp", "matplotlib")
"""Packages whose versions are stored with every result."""


def machine() -> dict[str, Any]:
    """Describe the machine and the versions of the software that figures are measured with."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory / (1 << 30), 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


class Bar:
    """The progress bar of one step."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def at(self, done: int) -> None:
        """Show that so many units of the step are done."""
        self._progress.update(self._task, completed=done)


@dataclass
class Context:
    """The options of an experiment.

    Args:
        folder: Folder for results.
        backend: Backend of the replicas.
        requests: Number of requests of each run.
        seed: Seed of all random numbers.
        quick: Whether to run only the smallest cases, as a test.
        show: Whether to show progress on the terminal.
        command: Command line that is stored with the result; empty: that of this process.
    """

    folder: Path
    backend: Backend = "process"
    requests: int = 10_000
    seed: int = 1
    quick: bool = False
    show: bool = True
    command: str = ""
    _console: Console = field(default_factory=lambda: Console(stderr=True))

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Bar]:
        """Show a progress bar while one step lasts.

        Args:
            description: Text beside the bar.
            total: Units of the step, such as requests.
        """
        columns = (
            TextColumn("{task.description:<44}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, disable=not self.show) as progress:
            task = progress.add_task(description, total=total)
            yield Bar(progress, task)
            progress.update(task, completed=total)

    def save(self, name: str, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write a result to a JSON file, with its command, its seed and the machine; return all of it.

        Args:
            name: Name of the experiment.
            result: Result of the experiment, of values that JSON can hold.
        """
        saved = {
            "experiment": name,
            "command": self.command or " ".join(sys.argv),
            "backend": self.backend,
            "seed": self.seed,
            "machine": machine(),
            "result": dict(result),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{name}.json").write_text(json.dumps(saved, indent=1) + "\n")
        return saved
