"""Runs the contest and writes its tables; bounded in count and time, on loopback only."""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from analysis.bench import contest, extremes
from analysis.bench.peers import Peer, contestants

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
"""What stands between these in a page is replaced by the tables."""

PARTS = ("speed", "tail", "connections", "bodies")

OURS = "this, fast lane"


def main() -> int:
    """Run the contest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each run")
    parser.add_argument("--connections", type=int, nargs="+", default=[64, 1000])
    parser.add_argument("--many", type=int, default=10_000, help="connections at once")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--report", type=Path, help="page whose tables to replace")
    options = parser.parse_args()
    try:
        contest.check()
    except contest.ContestError as error:
        print(f"make bench: {error}", file=sys.stderr)
        return 1
    lines = [
        f"Median of {options.runs} alternating runs of {options.seconds} s; {os.cpu_count()} cores, "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}. The contestants are "
        "pinned to one core, the load and the replicas to another; keep-alive both ways, a 66-byte answer, "
        "access logs off.",
        "",
    ]
    rows = contest.medians(contest.hold(options.runs, options.seconds, options.connections, _tell))
    for connections in options.connections:
        lines += contest.table(rows, connections)
    with tempfile.TemporaryDirectory() as home, contestants(Path(home), 8301, core=0, other=1) as peers:
        if "tail" in options.parts:
            peaks = {row["name"]: row["rate"] for row in reversed(rows)}  # at the fewest connections
            lines += _tail(peers, peaks, options.runs, options.seconds)
        if "connections" in options.parts:
            lines += _many(peers, options.many)
    if "bodies" in options.parts:
        bulk = (sys.executable, "-m", "analysis.bench.bulk_replica")
        with (
            tempfile.TemporaryDirectory() as home,
            contestants(Path(home), 8301, core=0, other=1, replica=bulk) as peers,
        ):
            lines += _bodies(peers, Path(home), options.runs)
    print("\n".join(lines))
    if options.report:
        page = options.report.read_text()
        before, after = page.partition(BEGIN)[0], page.partition(END)[2]
        options.report.write_text("\n".join([before + BEGIN, *lines]) + END + after)
    return 0


def _tell(line: str) -> None:
    print(line, flush=True)


def _of(peers: Sequence[Peer], *names: str) -> list[Peer]:
    return [peer for name in names for peer in peers if peer.name == name]


def _tail(peers: Sequence[Peer], peaks: Mapping[str, float], runs: int, seconds: int) -> list[str]:
    rows = extremes.half_load(_of(peers, OURS, "nginx", "HAProxy"), peaks, runs, seconds, _tell)
    reference = next(row["p99_ms"] for row in rows if row["name"] == "nginx")
    return [
        "| at about half of its own peak | connections | requests/s | of its peak | p99, ms | p99 × nginx |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row['name']} | {row['connections']} | {row['rate']:,.0f} | {row['of_peak']:.2f} "
            f"| {row['p99_ms']:.2f} | {row['p99_ms'] / reference:.2f} |"
            for row in rows
        ),
        "",
    ]


def _many(peers: Sequence[Peer], connections: int) -> list[str]:
    rows = extremes.many_connections(_of(peers, OURS, "nginx"), connections, connections * 6, _tell)
    return [
        f"| {connections:,} connections, all active | failed | memory for each, KiB |",
        "|---|---|---|",
        *(f"| {row['name']} | {row['failed']} | {row['kib_each']:.1f} |" for row in rows),
        "",
    ]


def _bodies(peers: Sequence[Peer], home: Path, runs: int) -> list[str]:
    rows = extremes.bodies(_of(peers, OURS, "nginx", "HAProxy"), home, runs, _tell)
    nginx = next(row for row in rows if row["name"] == "nginx")
    return [
        "| a body of 1 GiB | down, MiB/s | × nginx | up, MiB/s | × nginx |",
        "|---|---|---|---|---|",
        *(
            f"| {row['name']} | {row['down_mib_s']:,.0f} | {row['down_mib_s'] / nginx['down_mib_s']:.2f} "
            f"| {row['up_mib_s']:,.0f} | {row['up_mib_s'] / nginx['up_mib_s']:.2f} |"
            for row in rows
        ),
        "",
    ]


if __name__ == "__main__":
    sys.exit(main())
