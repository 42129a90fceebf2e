"""Runs the contest and writes its table; bounded in count and time, on loopback only."""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from analysis.bench.peers import Peer, contestants

TOOLS = {"wrk": "wrk", "nginx": "nginx-light", "haproxy": "haproxy", "taskset": "util-linux"}
"""Programs that are needed, and the Debian packages that bring them."""

REFERENCE = "nginx"

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
"""What stands between these in a page is replaced by the table."""


@dataclass
class Result:
    """What was measured of one contestant at one number of connections.

    Args:
        rates: Requests a second, run by run.
        p99: Milliseconds, run by run.
        user: Microseconds of user time for each request, run by run.
        system: The same of system time.
        failures: Answers other than 2xx, broken connections and time-outs.
    """

    rates: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    user: list[float] = field(default_factory=list)
    system: list[float] = field(default_factory=list)
    failures: int = 0
    memory: float = 0.0


def measure(peer: Peer, connections: int, seconds: int, core: int, result: Result) -> None:
    """Load one contestant for a while."""
    url = f"http://127.0.0.1:{peer.port}/home"
    load = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", url]
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


def table(results: dict[tuple[str, int], Result], connections: int) -> list[str]:
    """The results at one number of connections, as lines of Markdown."""
    reference = median(results[REFERENCE, connections].rates)
    lines = [
        f"| {connections} connections | requests/s | × {REFERENCE} | p99, ms "
        "| CPU µs/request (user + system) | memory, MiB | failures |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, count), result in results.items():
        if count != connections:
            continue
        rate = median(result.rates)
        cpu = f"{median(result.user):.1f} + {median(result.system):.1f}" if result.memory else "—"
        memory = f"{result.memory:.0f}" if result.memory else "—"
        lines.append(
            f"| {name} | {rate:,.0f} | {rate / reference:.2f} | {median(result.p99):.1f} | {cpu} | {memory} "
            f"| {result.failures} |"
        )
    return [*lines, ""]


def main() -> int:
    """Run the contest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each run")
    parser.add_argument("--connections", type=int, nargs="+", default=[64, 1000])
    parser.add_argument("--report", type=Path, help="page whose table to replace")
    options = parser.parse_args()
    missing = [f"{tool} ({package})" for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        print(f"make bench needs {', '.join(missing)}: the packages are Debian's", file=sys.stderr)
        return 1
    if (os.cpu_count() or 1) < 2:
        print(
            "make bench needs two cores: one for the load balancer, one for everything else", file=sys.stderr
        )
        return 1
    results: dict[tuple[str, int], Result] = {}
    with tempfile.TemporaryDirectory() as home, contestants(Path(home), 8301, core=0, other=1) as peers:
        for run in range(options.runs):
            for connections in options.connections:
                for peer in peers:
                    result = results.setdefault((peer.name, connections), Result())
                    measure(peer, connections, options.seconds, 1, result)
                    print(f"run {run + 1}: {peer.name}, {connections}: {result.rates[-1]:,.0f}/s", flush=True)
    lines = [
        f"Median of {options.runs} alternating runs of {options.seconds} s; {os.cpu_count()} cores, "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}. The contestants are "
        "pinned to one core, wrk and the replicas to another; keep-alive both ways, a 66-byte answer, "
        "access logs off.",
        "",
        *(line for connections in options.connections for line in table(results, connections)),
    ]
    print("\n".join(lines))
    if options.report:
        page = options.report.read_text()
        before, after = page.partition(BEGIN)[0], page.partition(END)[2]
        options.report.write_text("\n".join([before + BEGIN, *lines]) + END + after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
