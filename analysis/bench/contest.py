"""The contest: each contestant in turn, again and again, so that what the machine does meets all alike."""

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from analysis.bench.peers import EVERYONE, NGINX_NAME, Peer, Setup, contestants
from analysis.bench.traffic import Traffic, identical

NEEDED = {"wrk": "wrk", "nginx": "nginx-light", "taskset": "util-linux"}
"""Programs without which nothing is measured, and the Debian packages that bring them."""

WANTED = {"haproxy": "haproxy", "h2load": "nghttp2-client", "curl": "curl"}
"""Programs without which something is left out, and the packages."""


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
        failures: Answers other than 2xx and 3xx, broken connections and time-outs.
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
    if missing := without(NEEDED):
        raise ContestError(f"{', '.join(missing)} would have to be installed: the packages are Debian's")
    if (os.cpu_count() or 1) < 2:
        raise ContestError("two cores are needed: one for the load balancer, one for everything else")


def without(tools: Mapping[str, str]) -> list[str]:
    """Those of some programs that are not installed, each with its package."""
    return [f"{tool} ({package})" for tool, package in tools.items() if shutil.which(tool) is None]


def hold(
    runs: int,
    seconds: int,
    connections: Sequence[int],
    told: Callable[[str], None],
    traffic: Traffic = identical,
    names: Sequence[str] = EVERYONE,
    setup: Setup | None = None,
) -> list[Result]:
    """Hold the contest.

    Args:
        runs: Of each contestant at each number of connections.
        seconds: Of each run.
        connections: Numbers of connections.
        told: Told of each run's outcome.
        traffic: What they are loaded with.
        names: Who takes part.
        setup: What they are given.
    """
    check()
    results: dict[tuple[str, int], Result] = {}
    with tempfile.TemporaryDirectory() as home, contestants(Path(home), names, setup) as peers:
        for run in range(runs):
            for count in connections:
                for peer in peers:
                    result = results.setdefault((peer.name, count), Result(peer.name, count))
                    measure(peer, seconds, result, traffic)
                    told(f"run {run + 1}: {peer.name}, {count}: {result.rates[-1]:,.0f}/s")
    return list(results.values())


def measure(peer: Peer, seconds: int, result: Result, traffic: Traffic) -> None:
    """Load one contestant for a while.

    Args:
        peer: Whom.
        seconds: How long.
        result: What is measured is added to it.
        traffic: What it is loaded with.
    """
    before = peer.cpu_seconds()
    outcome = traffic(peer, result.connections, seconds)
    after = peer.cpu_seconds()
    result.rates.append(outcome.rate)
    result.p99.append(outcome.p99)
    result.user.append((after[0] - before[0]) / outcome.requests * 1e6)
    result.system.append((after[1] - before[1]) / outcome.requests * 1e6)
    result.failures += outcome.failures
    result.memory = peer.memory()


def medians(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The median of each figure, and the ratio to nginx at the same number of connections."""
    reference = {one.connections: median(one.rates) for one in results if one.name == NGINX_NAME}
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
    rows = [row for row in rows if row["connections"] == connections]
    reference = next(_cpu(row) for row in rows if row["name"] == NGINX_NAME)
    lines = [
        f"| {connections:,} connections | requests/s | × nginx | CPU µs/request (user + system) "
        "| CPU: nginx ÷ it | p99, ms | memory, MiB | failures |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        p99 = "—" if math.isnan(row["p99_ms"]) else f"{row['p99_ms']:.1f}"
        cpu, less, memory = "—", "—", "—"
        if row["memory"]:
            cpu = f"{row['user_us']:.1f} + {row['system_us']:.1f}"
            less = f"{reference / _cpu(row):.2f}" if _cpu(row) else "—"
            memory = f"{row['memory']:.0f}"
        lines.append(
            f"| {row['name']} | {row['rate']:,.0f} | {row['ratio']:.2f} | {cpu} | {less} | {p99} | {memory} "
            f"| {row['failures']} |"
        )
    return [*lines, ""]


def _cpu(row: dict[str, Any]) -> float:
    """Microseconds of CPU for a request."""
    return float(row["user_us"] + row["system_us"])
