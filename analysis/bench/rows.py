"""The rows of the benchmark: each measures one thing, and tells of it in lines of Markdown.

They are told in the order in which they stand in `ROWS`.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import uvloop

from analysis.bench import contest, crowd, extremes, kills, traffic
from analysis.bench.peers import EVERYONE, HAPROXY_NAME, NGINX_NAME, OURS, Setup, contestants

PLAIN = Setup()
BY_COOKIE = Setup(cookie=traffic.COOKIE)
LOGGED = Setup(access_log=True)
HUNDRED = Setup(replicas=100)
ALL_OF_IT = Setup(replicas=100, cookie=traffic.COOKIE, access_log=True)

BALANCERS = (OURS, NGINX_NAME, HAPROXY_NAME)

TLS_CONNECTIONS = 32

SHORT_CONNECTIONS = 64
"""Clients that connect, ask once, and connect anew."""

ASKED_ON = 2.0
"""Seconds for which a crowd that goes on asking does so."""

LATE, TOO_LATE = 0.2, 0.5
"""Seconds that the first answer to a client should not take."""


@dataclass(frozen=True)
class Effort:
    """How much is done.

    Args:
        runs: Of each contestant, alternating.
        seconds: Of each run.
        connections: Numbers of connections.
        many: Connections of the row on memory.
        clients: That connect at once.
        kills: Replicas that are killed.
        told: Told of each step's outcome.
    """

    runs: int
    seconds: int
    connections: Sequence[int]
    many: int
    clients: int
    kills: int
    told: Callable[[str], None]


Row = Callable[[Effort], list[str]]


@dataclass(frozen=True)
class Speed:
    """A row on requests a second and CPU time.

    Args:
        title: What is measured, in a sentence.
        load: The traffic.
        names: Who takes part.
        setup: What they are given.
        connections: Numbers of connections; empty: those of the effort.
    """

    title: str
    load: traffic.Traffic
    names: Sequence[str] = BALANCERS
    setup: Setup = PLAIN
    connections: Sequence[int] = ()

    def __call__(self, effort: Effort) -> list[str]:
        """Measure it."""
        counts = self.connections or effort.connections
        results = contest.hold(
            effort.runs, effort.seconds, counts, effort.told, self.load, self.names, self.setup
        )
        rows = contest.medians(results)
        return [self.title, "", *(line for count in counts for line in contest.table(rows, count))]


def _tls(effort: Effort) -> list[str]:
    title = "HTTP/1.1 over TLS, a path and a query of its own in each request (h2load)."
    if shutil.which("h2load") is None:
        return [f"{title} Not measured: h2load is not installed.", ""]
    row = Speed(title, traffic.by_h2load, setup=Setup(tls=True), connections=(TLS_CONNECTIONS,))
    return row(effort)


def _crowd(effort: Effort) -> list[str]:
    lines = [
        f"The first answer to each of {effort.clients:,} clients that connect at once; time begins when the "
        f"client begins to connect. {crowd.PATIENCE:.0f} s: a client has had none by then. The shares are of "
        "the clients of all runs.",
        "",
        f"| {effort.clients:,} clients | which then | slowest, s (median) | slowest of all, s "
        f"| above {LATE} s | above {TOO_LATE} s |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as home, contestants(Path(home), BALANCERS) as peers:
        for then, seconds in (("ask no more", 0.0), ("go on asking", ASKED_ON)):
            waited: dict[str, list[list[float]]] = {peer.name: [] for peer in peers}
            for _ in range(effort.runs):
                for peer in peers:
                    waited[peer.name].append(crowd.first_answers(peer, effort.clients, seconds))
                    effort.told(f"crowd, who {then}: {peer.name}: {waited[peer.name][-1][-1]:.3f} s")
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
    with tempfile.TemporaryDirectory() as home, contestants(Path(home), BALANCERS) as peers:
        rows = extremes.half_load(peers, effort.runs, effort.seconds, effort.told)
    reference = next(row["p99_ms"] for row in rows if row["name"] == NGINX_NAME)
    return [
        "The tail, varied traffic.",
        "",
        "| at about half of its own peak | connections | requests/s | of its peak | p99, ms | p99 × nginx |",
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
        "Replicas killed (SIGKILL) one after the other, each when the last one has been replaced, under a "
        f"closed loop of {kills.CLIENTS} connections; {kills.REPLICAS} replicas; nothing is pinned.",
        "",
        "| replicas | kills | requests | requests/s | failed |",
        "|---|---|---|---|---|",
    ]
    for name, options in kills.REPLICAS_ARE.items():
        outcome = uvloop.run(kills.kills(effort.kills, options, effort.told))
        failed = sum(outcome.errors.values())
        how = ", ".join(f"{kind}: {count}" for kind, count in outcome.errors.most_common())
        lines.append(
            f"| {name} | {outcome.kills} | {outcome.requests:,} | {outcome.requests / outcome.seconds:,.0f} "
            f"| {failed}{f' ({how})' if how else ''} |"
        )
    return [*lines, ""]


def _memory(effort: Effort) -> list[str]:
    many = effort.many
    with tempfile.TemporaryDirectory() as home, contestants(Path(home), (OURS, NGINX_NAME)) as peers:
        rows = extremes.many_connections(peers, many, many * 6, effort.told)
    return [
        "Memory, varied traffic.",
        "",
        f"| {many:,} connections, all active | failed | memory for each, KiB |",
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
        contestants(Path(home), BALANCERS, replica=bulk) as peers,
    ):
        rows = extremes.bodies(peers, Path(home), effort.runs, effort.told)
    nginx = next(row for row in rows if row["name"] == NGINX_NAME)
    return [
        "Large bodies.",
        "",
        "| a body of 1 GiB | down, MiB/s | × nginx | up, MiB/s | × nginx |",
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
        "Varied traffic: each request has a path, a query and a cookie of its own, each answer a header of "
        "its own.",
        traffic.varied,
        EVERYONE,
    ),
    "identical": Speed(
        "Identical traffic: the same bytes each time, but for the date of the answer.",
        traffic.identical,
        EVERYONE,
    ),
    "laden": Speed(
        "The same varied traffic, a replica chosen by a cookie, the access log on (to a file), 100 replicas.",
        traffic.varied,
        setup=ALL_OF_IT,
    ),
    "crowd": _crowd,
    "tail": _tail,
    "tls": _tls,
    "short": Speed(
        "Short connections: one varied request on each.",
        traffic.short,
        connections=(SHORT_CONNECTIONS,),
    ),
    "kills": _kills,
    "memory": _memory,
    "bodies": _bodies,
}
"""What `make bench` measures."""

PIECES: dict[str, Row] = {
    "cookie": Speed("Varied traffic, a replica chosen by a cookie.", traffic.varied, setup=BY_COOKIE),
    "log": Speed("Varied traffic, the access log on (to a file).", traffic.varied, setup=LOGGED),
    "hundred": Speed("Varied traffic, 100 replicas.", traffic.varied, setup=HUNDRED),
}
"""What `laden` is made of, one by one: measured only when it is named."""
