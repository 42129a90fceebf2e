"""What every experiment is given: where it may write, what it runs on, and how it shows that it is alive."""

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
"""Whose versions are told with every result."""


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory / (1 << 30), 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


class Bar:
    """How far one step has come."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def at(self, done: int) -> None:
        """So much is done."""
        self._progress.update(self._task, completed=done)


@dataclass
class Context:
    """Given to every experiment.

    Args:
        folder: Where results go.
        backend: Where replicas run.
        requests: Of each run.
        seed: Of everything that is drawn.
        quick: Whether to do the least that shows that it works.
        show: Whether to show progress on the terminal.
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
    def bar(self, what: str, total: int) -> Iterator[Bar]:
        """Show a bar for one step.

        Args:
            what: What is being done.
            total: How much there is to do.
        """
        columns = (
            TextColumn("{task.description:<44}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, disable=not self.show) as progress:
            task = progress.add_task(what, total=total)
            yield Bar(progress, task)
            progress.update(task, completed=total)

    def keep(self, name: str, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write a result beside what it was measured with, and return both.

        Args:
            name: Of the experiment.
            result: What JSON can hold.
        """
        whole = {
            "experiment": name,
            "command": self.command or " ".join(sys.argv),
            "backend": self.backend,
            "seed": self.seed,
            "machine": machine(),
            "result": dict(result),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
        return whole
