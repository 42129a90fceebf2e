"""Compares peers in alternating runs, so that other activity of the machine affects all of them alike."""

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from analysis.bench.peers import ALL_PEERS, NGINX_NAME, Peer, Setup, running_peers
from analysis.bench.traffic import Traffic, identical

REQUIRED = {"wrk": "wrk", "nginx": "nginx-light", "taskset": "util-linux"}
"""Programs that every row needs, with their Debian packages."""

OPTIONAL = {"haproxy": "haproxy", "h2load": "nghttp2-client", "curl": "curl"}
"""Programs that some rows need, with their Debian packages."""


class ComparisonError(Exception):
    """The machine cannot run the comparison; the text gives the reason."""


@dataclass
class Result:
    """The figures of one peer at one number of connections.

    Args:
        name: Name of the peer.
        connections: Number of open connections.
        rates: Requests a second of each run.
        p99: 99th percentile of latency of each run, in milliseconds.
        user: User time for a request in each run, in microseconds.
        system: System time for a request in each run, in microseconds.
        failures: Answers other than 2xx and 3xx, broken connections and time-outs of all runs.
        memory: Resident memory after the last run, in MiB; 0: unknown.
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
    """Check that the machine can run the comparison.

    Raises:
        ComparisonError: A required program is not installed, or the machine has one core.
    """
    if absent := missing(REQUIRED):
        raise ComparisonError(f"not installed: {', '.join(absent)}; the Debian package is in brackets")
    if (os.cpu_count() or 1) < 2:
        raise ComparisonError("two cores are needed: one for the load balancer, one for all else")


def missing(programs: Mapping[str, str]) -> list[str]:
    """Programs that are not installed, each with its package in brackets.

    Args:
        programs: Packages by program.
    """
    return [f"{name} ({package})" for name, package in programs.items() if shutil.which(name) is None]


def compare(
    runs: int,
    seconds: int,
    connections: Sequence[int],
    log: Callable[[str], None],
    traffic: Traffic = identical,
    names: Sequence[str] = ALL_PEERS,
    setup: Setup | None = None,
) -> list[Result]:
    """Start the peers, and measure each of them at each number of connections.

    Args:
        runs: Number of runs of each peer at each number of connections.
        seconds: Duration of each run.
        connections: Numbers of connections.
        log: Called with a line of text after each run.
        traffic: Kind of load.
        names: Names of the peers to measure.
        setup: Configuration that all peers share.

    Raises:
        ComparisonError: The machine cannot run the comparison.
    """
    check()
    results: dict[tuple[str, int], Result] = {}
    with tempfile.TemporaryDirectory() as home, running_peers(Path(home), names, setup) as peers:
        for run in range(runs):
            for count in connections:
                for peer in peers:
                    result = results.setdefault((peer.name, count), Result(peer.name, count))
                    measure(peer, seconds, result, traffic)
                    log(f"run {run + 1}: {peer.name}, {count}: {result.rates[-1]:,.0f}/s")
    return list(results.values())


def measure(peer: Peer, seconds: int, result: Result, traffic: Traffic) -> None:
    """Run the load on one peer once, and add the figures to its result.

    Args:
        peer: Peer to load.
        seconds: Duration of the run.
        result: Result of the peer; its number of connections is used.
        traffic: Kind of load.
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
    """The median of each figure, and the rate as a multiple of nginx's at the same number of connections."""
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
    """The medians at one number of connections, as a table in Markdown."""
    rows = [row for row in rows if row["connections"] == connections]
    reference = next(_cpu(row) for row in rows if row["name"] == NGINX_NAME)
    lines = [
        f"| {connections:,} connections | requests/s | × nginx | CPU µs/request (user + system) "
        "| CPU: nginx ÷ this row | p99, ms | memory, MiB | failures |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        p99 = "—" if math.isnan(row["p99_ms"]) else f"{row['p99_ms']:.1f}"
        cpu, ratio, memory = "—", "—", "—"
        if row["memory"]:
            cpu = f"{row['user_us']:.1f} + {row['system_us']:.1f}"
            ratio = f"{reference / _cpu(row):.2f}" if _cpu(row) else "—"
            memory = f"{row['memory']:.0f}"
        lines.append(
            f"| {row['name']} | {row['rate']:,.0f} | {row['ratio']:.2f} | {cpu} | {ratio} | {p99} | {memory} "
            f"| {row['failures']} |"
        )
    return [*lines, ""]


def _cpu(row: dict[str, Any]) -> float:
    """Microseconds of CPU time for a request."""
    return float(row["user_us"] + row["system_us"])
