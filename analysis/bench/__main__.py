"""Measures the load balancer beside nginx and HAProxy, row by row, and writes the tables.

Bounded in count and time, on loopback only.
"""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.bench import contest
from analysis.bench.rows import PIECES, ROWS, Effort

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
"""What stands between these in a page is replaced by the tables."""


def main() -> int:
    """Run the contest."""
    options = _options()
    try:
        contest.check()
    except contest.ContestError as error:
        print(f"make bench: {error}", file=sys.stderr)
        return 1
    effort = Effort(
        runs=options.runs,
        seconds=options.seconds,
        connections=options.connections,
        many=options.many,
        clients=options.clients,
        kills=options.kills,
        told=lambda line: print(line, flush=True),
    )
    lines = _heading(effort)
    for name in options.only:
        lines += (ROWS | PIECES)[name](effort)
    print("\n".join(lines))
    if options.report:
        page = options.report.read_text()
        before, after = page.partition(BEGIN)[0], page.partition(END)[2]
        options.report.write_text("\n".join([before + BEGIN, *lines]) + END + after)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m analysis.bench", description=__doc__)
    parser.add_argument(
        "--only",
        type=_names,
        default=tuple(ROWS),
        metavar="NAME[,NAME]",
        help=f"rows to measure: {', '.join(ROWS)}; and {', '.join(PIECES)}, which are measured only if named",
    )
    parser.add_argument("--runs", type=int, default=5, help="of each contestant, alternating")
    parser.add_argument("--seconds", type=int, default=4, help="of each run")
    parser.add_argument("--connections", type=int, nargs="+", default=[64, 1000])
    parser.add_argument("--many", type=int, default=10_000, help="connections of the row memory")
    parser.add_argument("--clients", type=int, default=1_000, help="of the row crowd")
    parser.add_argument("--kills", type=int, default=30, help="of the row kills")
    parser.add_argument("--report", type=Path, help="page whose tables to replace")
    return parser.parse_args()


def _names(text: str) -> Sequence[str]:
    """Names of rows.

    Raises:
        argparse.ArgumentTypeError: There is no such row.
    """
    names = text.split(",")
    for name in names:
        if name not in ROWS | PIECES:
            raise argparse.ArgumentTypeError(f"there is no row {name!r}: {', '.join([*ROWS, *PIECES])}")
    return names


def _heading(effort: Effort) -> list[str]:
    missing = contest.without(contest.WANTED)
    return [
        f"Median of {effort.runs} alternating runs of {effort.seconds} s; {os.cpu_count()} cores, "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}. The contestants are "
        "pinned to one core, the load and the replicas to another. Unless a table says otherwise: three "
        "replicas, keep-alive both ways, a 66-byte answer, access logs off. CPU time is a contestant's own: "
        "above 0.9 of nginx the core of the load is full, and CPU time says more than requests/s."
        + (f" Not installed, and left out: {', '.join(missing)}." if missing else ""),
        "",
    ]


if __name__ == "__main__":
    sys.exit(main())
