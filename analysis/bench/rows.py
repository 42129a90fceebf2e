"""The rows of the benchmark: each measures one kind of load, and returns its figures as lines of Markdown."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import uvloop

from analysis.bench import comparison, crowd, extremes, kills, traffic
from analysis.bench.peers import ALL_PEERS, HAPROXY_NAME, NGINX_NAME, OURS, Setup, running_peers

PLAIN = Setup()
BY_COOKIE = Setup(cookie=traffic.COOKIE)
LOGGED = Setup(access_log=True)
HUNDRED = Setup(replicas=100)
ALL_FEATURES = Setup(replicas=100, cookie=traffic.COOKIE, access_log=True)

BALANCERS = (OURS, NGINX_NAME, HAPROXY_NAME)

TLS_CONNECTIONS = 32

SHORT_CONNECTIONS = 64
"""Number of clients that send one request on each connection."""

FURTHER_REQUESTS = 2.0
"""Seconds for which the clients of a crowd send further requests, where they do."""

LATE, TOO_LATE = 0.2, 0.5
"""Limits of the wait for a first answer, in seconds; the table gives the share of clients above each."""


@dataclass(frozen=True)
class Effort:
    """The size of the measurement.

    Args:
        runs: Number of alternating runs of each peer.
        seconds: Duration of each run.
        connections: Numbers of connections.
        many: Number of connections of the row `memory`.
        clients: Number of clients of the row `crowd`.
        kills: Number of kills of the row `kills`.
        log: Called with a line of text after each step.
    """

    runs: int
    seconds: int
    connections: Sequence[int]
    many: int
    clients: int
    kills: int
    log: Callable[[str], None]


Row = Callable[[Effort], list[str]]
"""Measures a row, and returns it as lines of Markdown."""


@dataclass(frozen=True)
class Speed:
    """A row that measures requests a second and CPU time.

    Args:
        title: Sentence above the table.
        load: Kind of load.
        names: Names of the peers.
        setup: Configuration of the peers.
        connections: Numbers of connections; empty: those of the effort.
    """

    title: str
    load: traffic.Traffic
    names: Sequence[str] = BALANCERS
    setup: Setup = PLAIN
    connections: Sequence[int] = ()

    def __call__(self, effort: Effort) -> list[str]:
        """Measure the row."""
        counts = self.connections or effort.connections
        results = comparison.compare(
            effort.runs, effort.seconds, counts, effort.log, self.load, self.names, self.setup
        )
        rows = comparison.medians(results)
        return [self.title, "", *(line for count in counts for line in comparison.table(rows, count))]


def _tls(effort: Effort) -> list[str]:
    title = "HTTP/1.1 over TLS; each request has a different path and query (h2load)."
    if shutil.which("h2load") is None:
        return [f"{title} Not measured: h2load is not installed.", ""]
    row = Speed(title, traffic.by_h2load, setup=Setup(tls=True), connections=(TLS_CONNECTIONS,))
    return row(effort)


def _crowd(effort: Effort) -> list[str]:
    lines = [
        f"{effort.clients:,} clients connect at once. The table gives the time from the start of a client's "
        f"connection to the first byte of its first answer; {crowd.PATIENCE:.0f} s: it got none until "
        "then. *Above* is a share of the clients of all runs.",
        "",
        f"| {effort.clients:,} clients | then | slowest client, s (median) | slowest of all runs, s "
        f"| above {LATE} s | above {TOO_LATE} s |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as home, running_peers(Path(home), BALANCERS) as peers:
        for then, seconds in (("no further requests", 0.0), ("further requests", FURTHER_REQUESTS)):
            waited: dict[str, list[list[float]]] = {peer.name: [] for peer in peers}
            for _ in range(effort.runs):
                for peer in peers:
                    waited[peer.name].append(crowd.first_answers(peer, effort.clients, seconds))
                    effort.log(f"crowd, {then}: {peer.name}: {waited[peer.name][-1][-1]:.3f} s")
            for name, runs in waited.items():
                slowest = [min(run[-1], crowd.PATIENCE) for run in runs]
                shares = [
                    sum(wait > limit for run in runs for wait in run) / (len(runs) * effort.clients)
                    for limit in (LATE, TOO_LATE)
                ]
                lines.append(
                    f"| {name} | {then} | {median(slowest):.3f} | {max(slowest):.3f} "
                    f"| {shares[0]:.1%} | {shares[1]:.1%} |"
                )
    return [*lines, ""]


def _tail(effort: Effort) -> list[str]:
    with tempfile.TemporaryDirectory() as home, running_peers(Path(home), BALANCERS) as peers:
        rows = extremes.half_load(peers, effort.runs, effort.seconds, effort.log)
    reference = next(row["p99_ms"] for row in rows if row["name"] == NGINX_NAME)
    return [
        "Tail latency; varied traffic.",
        "",
        "| about half of the peak rate | connections | requests/s | × own peak | p99, ms | p99 × nginx |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row['name']} | {row['connections']} | {row['rate']:,.0f} | {row['of_peak']:.2f} "
            f"| {row['p99_ms']:.2f} | {row['p99_ms'] / reference:.2f} |"
            for row in rows
        ),
        "",
    ]


def _kills(effort: Effort) -> list[str]:
    lines = [
        f"SIGKILL of one of {kills.REPLICAS} replicas, again after each replacement, under a closed loop of "
        f"{kills.CLIENTS} connections. No process is pinned to a core.",
        "",
        "| replicas | kills | requests | requests/s | failed |",
        "|---|---|---|---|---|",
    ]
    for name, options in kills.KINDS_OF_REPLICA.items():
        outcome = uvloop.run(kills.kills(effort.kills, options, effort.log))
        failed = sum(outcome.errors.values())
        kinds = ", ".join(f"{kind}: {count}" for kind, count in outcome.errors.most_common())
        lines.append(
            f"| {name} | {outcome.kills} | {outcome.requests:,} | {outcome.requests / outcome.seconds:,.0f} "
            f"| {failed}{f' ({kinds})' if kinds else ''} |"
        )
    return [*lines, ""]


def _memory(effort: Effort) -> list[str]:
    many = effort.many
    with tempfile.TemporaryDirectory() as home, running_peers(Path(home), (OURS, NGINX_NAME)) as peers:
        rows = extremes.many_connections(peers, many, many * 6, effort.log)
    return [
        "Memory; varied traffic.",
        "",
        f"| {many:,} active connections | failed | memory for a connection, KiB |",
        "|---|---|---|",
        *(f"| {row['name']} | {row['failed']} | {row['kib_each']:.1f} |" for row in rows),
        "",
    ]


def _bodies(effort: Effort) -> list[str]:
    if shutil.which("curl") is None:
        return ["Bodies of 1 GiB. Not measured: curl is not installed.", ""]
    bulk = (sys.executable, "-m", "analysis.bench.bulk_replica")
    with (
        tempfile.TemporaryDirectory() as home,
        running_peers(Path(home), BALANCERS, replica=bulk) as peers,
    ):
        rows = extremes.bodies(peers, Path(home), effort.runs, effort.log)
    nginx = next(row for row in rows if row["name"] == NGINX_NAME)
    return [
        "Large bodies.",
        "",
        "| body of 1 GiB | download, MiB/s | × nginx | upload, MiB/s | × nginx |",
        "|---|---|---|---|---|",
        *(
            f"| {row['name']} | {row['down_mib_s']:,.0f} | {row['down_mib_s'] / nginx['down_mib_s']:.2f} "
            f"| {row['up_mib_s']:,.0f} | {row['up_mib_s'] / nginx['up_mib_s']:.2f} |"
            for row in rows
        ),
        "",
    ]


ROWS: dict[str, Row] = {
    "varied": Speed(
        "Varied traffic: requests differ in path, query and cookie, answers in a header.",
        traffic.varied,
        ALL_PEERS,
    ),
    "identical": Speed(
        "Identical traffic: all requests are the same, and answers differ only in their date.",
        traffic.identical,
        ALL_PEERS,
    ),
    "laden": Speed(
        "Varied traffic, with all of these: hashing of a cookie, an access log (to a file), 100 replicas.",
        traffic.varied,
        setup=ALL_FEATURES,
    ),
    "crowd": _crowd,
    "tail": _tail,
    "tls": _tls,
    "short": Speed(
        "Short connections: each carries one varied request.",
        traffic.short,
        connections=(SHORT_CONNECTIONS,),
    ),
    "kills": _kills,
    "memory": _memory,
    "bodies": _bodies,
}
"""The rows that `make bench` measures, in the order of the page."""

PIECES: dict[str, Row] = {
    "cookie": Speed("Varied traffic, with hashing of a cookie.", traffic.varied, setup=BY_COOKIE),
    "log": Speed("Varied traffic, with an access log (to a file).", traffic.varied, setup=LOGGED),
    "hundred": Speed("Varied traffic, with 100 replicas.", traffic.varied, setup=HUNDRED),
}
"""The features of the row `laden`, one by one. These rows are measured only if named."""
