"""Measures extremes: tail latency at half of the peak rate, memory of many connections, bodies of 1 GiB."""

import asyncio
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from analysis.bench.comparison import Result, measure
from analysis.bench.peers import LOAD_CORE, Peer, on_load_core
from analysis.bench.traffic import request, varied
from analysis.load.generator import Load, Target, run
from analysis.load.record import Record

GIBIBYTE = 1 << 30

PEAK = 64
"""Number of connections at which a peer reaches its peak rate."""

FEW = (1, 2, 3, 4, 6, 8, 12, 16, 24)
"""Numbers of connections to try for half of the peak rate."""


def half_load(
    peers: Sequence[Peer], runs: int, seconds: int, log: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure the tail latency of each peer at about half of its own peak rate.

    The number of connections is the one whose rate is nearest to half of the peak.

    Args:
        peers: Peers to measure.
        runs: Number of alternating runs of each peer.
        seconds: Duration of each run.
        log: Called with a line of text after each run.
    """
    peaks: dict[str, float] = {}
    chosen: dict[str, Result] = {}
    for peer in peers:
        peaks[peer.name] = varied(peer, PEAK, seconds).rate
        chosen[peer.name] = Result(peer.name, _connections_for(peer, peaks[peer.name] / 2))
    for _ in range(runs):
        for peer in peers:
            result = chosen[peer.name]
            measure(peer, seconds, result, varied)
            log(f"{peer.name}, {result.connections}: {result.rates[-1]:,.0f}/s, p99 {result.p99[-1]:.2f} ms")
    return [
        {
            "name": name,
            "connections": result.connections,
            "rate": median(result.rates),
            "of_peak": median(result.rates) / peaks[name],
            "p99_ms": median(result.p99),
        }
        for name, result in chosen.items()
    ]


def _connections_for(peer: Peer, rate: float) -> int:
    """The number of connections whose rate is nearest to a given one. The rate grows with the number."""
    distance: dict[int, float] = {}
    for few in FEW:
        reached = varied(peer, few, 1).rate
        distance[few] = abs(reached - rate)
        if reached >= rate:
            break
    return min(distance, key=distance.__getitem__)


def many_connections(
    peers: Sequence[Peer], connections: int, requests: int, log: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure the memory of each connection while every connection has a request in flight.

    Args:
        peers: Peers to measure.
        connections: Number of connections.
        requests: Number of requests in all.
        log: Called with a line of text for each peer.
    """
    rows = []
    for peer in peers:
        before = peer.memory()
        samples = [before]
        load = Load(requests, connections, timeout=60, together=True)
        record = asyncio.run(_send_and_sample(peer, load, samples))
        each = (max(samples) - before) * 1024 / connections
        failed = sum(record.errors.values())
        rows.append(
            {
                "name": peer.name,
                "connections": connections,
                "failed": failed,
                "kib_each": each,
                "errors": dict(record.errors),
            }
        )
        log(f"{connections:,} connections: {peer.name}: {failed} failed, {each:.1f} KiB each")
    return rows


def _send(peer: Peer, load: Load) -> Record:
    """Send the load to a peer from the core of the load generator."""
    host = f"127.0.0.1:{peer.port}"
    with on_load_core():
        return uvloop.run(run(Target.parse(peer.url("/")), load, lambda number: request(number, host)))


async def _send_and_sample(peer: Peer, load: Load, samples: list[float]) -> Record:
    """Send the load to a peer, and append its memory to the samples every 0.1 s."""
    sending = asyncio.create_task(asyncio.to_thread(_send, peer, load))
    while not sending.done():
        samples.append(peer.memory())
        await asyncio.wait({sending}, timeout=0.1)
    return await sending


def bodies(peers: Sequence[Peer], home: Path, runs: int, log: Callable[[str], None]) -> list[dict[str, Any]]:
    """Time the download and the upload of a body of 1 GiB.

    Args:
        peers: Peers to measure; their replicas run `bulk_replica`.
        home: Folder for the file that is uploaded.
        runs: Number of alternating runs of each peer.
        log: Called with a line of text after each transfer.
    """
    big = home / "big"
    with big.open("wb") as file:
        file.truncate(GIBIBYTE)
    found: dict[str, dict[str, list[float]]] = {peer.name: {"down": [], "up": []} for peer in peers}
    for _ in range(runs):
        for peer in peers:
            for direction, options in (("down", []), ("up", ["-T", str(big), "-H", "Expect:"])):
                url = peer.url("/big" if direction == "down" else "/sink")
                argv = ["taskset", "-c", str(LOAD_CORE), "curl", "-sSf", "-o", "/dev/null", *options, url]
                began = time.perf_counter()
                subprocess.run(argv, check=True, timeout=300)
                seconds = time.perf_counter() - began
                found[peer.name][direction].append(seconds)
                log(f"1 GiB {direction}: {peer.name}: {seconds:.2f} s")
    return [
        {"name": name, **{f"{direction}_mib_s": 1024 / median(times) for direction, times in both.items()}}
        for name, both in found.items()
    ]
