"""Compares the load balancer with nginx and HAProxy, and prints tables in Markdown.

All load goes to loopback. The number and the duration of the runs are bounded.
"""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.bench import comparison
from analysis.bench.rows import PIECES, ROWS, Effort

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
"""Marks in a page: the tables replace the text between them."""


def main() -> int:
    """Measure the rows, print the tables, and return the exit status."""
    options = _options()
    try:
        comparison.check()
    except comparison.ComparisonError as error:
        print(f"make bench: {error}", file=sys.stderr)
        return 1
    effort = Effort(
        runs=options.runs,
        seconds=options.seconds,
        connections=options.connections,
        many=options.many,
        clients=options.clients,
        kills=options.kills,
        log=lambda line: print(line, flush=True),
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
        help=f"rows to measure: {', '.join(ROWS)} (default: all of these); also {', '.join(PIECES)}",
    )
    parser.add_argument("--runs", type=int, default=5, help="number of runs of each peer")
    parser.add_argument("--seconds", type=int, default=4, help="duration of each run in seconds")
    parser.add_argument(
        "--connections", type=int, nargs="+", default=[64, 1000], help="numbers of connections"
    )
    parser.add_argument("--many", type=int, default=10_000, help="number of connections of the row memory")
    parser.add_argument("--clients", type=int, default=1_000, help="number of clients of the row crowd")
    parser.add_argument("--kills", type=int, default=30, help="number of kills of the row kills")
    parser.add_argument("--report", type=Path, help="page whose tables are replaced")
    return parser.parse_args()


def _names(text: str) -> Sequence[str]:
    """Parse a list of names of rows.

    Raises:
        argparse.ArgumentTypeError: A name is not that of a row.
    """
    names = text.split(",")
    for name in names:
        if name not in ROWS | PIECES:
            raise argparse.ArgumentTypeError(f"there is no row {name!r}: {', '.join([*ROWS, *PIECES])}")
    return names


def _heading(effort: Effort) -> list[str]:
    missing = comparison.missing(comparison.OPTIONAL)
    return [
        f"Median of {effort.runs} alternating runs of {effort.seconds} s; {os.cpu_count()} cores, "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}. Each load balancer "
        "is pinned to one core, the load generator and the replicas to another. Unless a table says "
        "otherwise: three replicas, keep-alive on both sides, answers of 66 bytes, no access log. CPU time "
        "is that of the load balancer alone. Above 0.9 of nginx the core of the load generator is full: CPU "
        "time is the better comparison there, not requests/s."
        + (f" Not installed, so not measured: {', '.join(missing)}." if missing else ""),
        "",
    ]


if __name__ == "__main__":
    sys.exit(main())
