"""The contest: each contestant in turn, again and again, so that what the machine does meets all alike."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from analysis.bench.peers import Peer, contestants

TOOLS = {"wrk": "wrk", "nginx": "nginx-light", "haproxy": "haproxy", "taskset": "util-linux"}
"""Programs that are needed, and the Debian packages that bring them."""

REFERENCE = "nginx"


class ContestError(Exception):
    """The contest cannot be held here; the text says what is missing."""


@dataclass
class Result:
    """What was measured of one contestant at one number of connections.

    Args:
        name: Of the contestant.
        connections: That were open.
        rates: Requests a second, run by run.
        p99: Milliseconds, run by run.
        user: Microseconds of user time for each request, run by run.
        system: The same of system time.
        failures: Answers other than 2xx, broken connections and time-outs.
        memory: MiB, after the last run; 0: unknown.
    """

    name: str
    connections: int
    rates: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    user: list[float] = field(default_factory=list)
    system: list[float] = field(default_factory=list)
    failures: int = 0
    memory: float = 0.0


def check() -> None:
    """See whether all that is needed is here.

    Raises:
        ContestError: It is not.
    """
    missing = [f"{tool} ({package})" for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise ContestError(f"{', '.join(missing)} would have to be installed: the packages are Debian's")
    if (os.cpu_count() or 1) < 2:
        raise ContestError("two cores are needed: one for the load balancer, one for everything else")


def hold(runs: int, seconds: int, connections: Sequence[int], told: Callable[[str], None]) -> list[Result]:
    """Hold the contest.

    Args:
        runs: Of each contestant at each number of connections.
        seconds: Of each run.
        connections: Numbers of connections.
        told: Told of each run's outcome.
    """
    check()
    results: dict[tuple[str, int], Result] = {}
    with tempfile.TemporaryDirectory() as home, contestants(Path(home), 8301, core=0, other=1) as peers:
        for run in range(runs):
            for count in connections:
                for peer in peers:
                    result = results.setdefault((peer.name, count), Result(peer.name, count))
                    measure(peer, seconds, 1, result)
                    told(f"run {run + 1}: {peer.name}, {count}: {result.rates[-1]:,.0f}/s")
    return list(results.values())


def measure(peer: Peer, seconds: int, core: int, result: Result) -> None:
    """Load one contestant for a while.

    Args:
        peer: Whom.
        seconds: How long.
        core: Of the load.
        result: What is measured is added to it.
    """
    url = f"http://127.0.0.1:{peer.port}/home"
    load = ["wrk", "-t1", f"-c{result.connections}", f"-d{seconds}s", "--latency", url]
    before = peer.cpu_seconds()
    done = subprocess.run(["taskset", "-c", str(core), *load], capture_output=True, text=True, check=True)
    after = peer.cpu_seconds()
    text = done.stdout
    requests = int(re.findall(r"(\d+) requests in", text)[0])
    value, unit = re.findall(r"99%\s+([\d.]+)(us|ms|s)", text)[0]
    result.rates.append(float(re.findall(r"Requests/sec:\s+([\d.]+)", text)[0]))
    result.p99.append(float(value) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit])
    result.user.append((after[0] - before[0]) / requests * 1e6)
    result.system.append((after[1] - before[1]) / requests * 1e6)
    for errors in re.findall(r"Non-2xx or 3xx responses: (\d+)|read (\d+), write (\d+), timeout (\d+)", text):
        result.failures += sum(int(count or 0) for count in errors)
    result.memory = peer.memory()


def medians(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The median of each figure, and the ratio to nginx at the same number of connections."""
    reference = {one.connections: median(one.rates) for one in results if one.name == REFERENCE}
    return [
        {
            **asdict(one),
            "rate": median(one.rates),
            "ratio": median(one.rates) / reference[one.connections],
            "p99_ms": median(one.p99),
            "user_us": median(one.user),
            "system_us": median(one.system),
        }
        for one in results
    ]


def table(rows: Sequence[dict[str, Any]], connections: int) -> list[str]:
    """The medians at one number of connections, as lines of Markdown."""
    lines = [
        f"| {connections:,} connections | requests/s | × {REFERENCE} | p99, ms "
        "| CPU µs/request (user + system) | memory, MiB | failures |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["connections"] != connections:
            continue
        cpu = f"{row['user_us']:.1f} + {row['system_us']:.1f}" if row["memory"] else "—"
        memory = f"{row['memory']:.0f}" if row["memory"] else "—"
        speed = f"{row['rate']:,.0f} | {row['ratio']:.2f} | {row['p99_ms']:.1f}"
        lines.append(f"| {row['name']} | {speed} | {cpu} | {memory} | {row['failures']} |")
    return [*lines, ""]
