"""Beyond the usual: the tail at half of the peak, thousands of connections, and bodies of a gibibyte."""

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from analysis.bench.peers import Peer
from analysis.load.generator import Load, Target, run
from analysis.load.record import Record, percentile

GIBIBYTE = 1 << 30

CORE = 1
"""What everything but the contestants is pinned to."""


def _send(peer: Peer, load: Load) -> Record:
    """Load a contestant from the core of everything else."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CORE})
    try:
        return uvloop.run(run(Target.parse(f"http://127.0.0.1:{peer.port}/home"), load))
    finally:
        os.sched_setaffinity(0, before)


def half_load(
    peers: Sequence[Peer], rate: float, runs: int, seconds: float, told: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The tail in an open loop at one rate for all.

    Args:
        peers: The contestants.
        rate: Requests a second: half of the slowest one's peak.
        runs: Of each, alternating.
        seconds: Of each run.
        told: Told of each run's outcome.
    """
    found: dict[str, list[tuple[float, float]]] = {peer.name: [] for peer in peers}
    for number in range(runs):
        for peer in peers:
            load = Load(round(rate * seconds), 256, rate, warm_up=round(rate / 2), seed=number)
            ordered = _send(peer, load).latencies()
            p50, p99 = percentile(ordered, 50) * 1000, percentile(ordered, 99) * 1000
            found[peer.name].append((p50, p99))
            told(f"{rate:,.0f}/s: {peer.name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    return [
        {
            "name": name,
            "rate": rate,
            "p50_ms": median(p[0] for p in pairs),
            "p99_ms": median(p[1] for p in pairs),
        }
        for name, pairs in found.items()
    ]


def many_connections(
    peers: Sequence[Peer], connections: int, requests: int, told: Callable[[str], None]
) -> list[dict[str, Any]]:
    """So many connections, each with a request under way all the time, and what memory they take.

    Args:
        peers: The contestants.
        connections: How many.
        requests: In all.
        told: Told of each outcome.
    """
    rows = []
    for peer in peers:
        before = peer.memory()
        peak = [before]
        watcher = _Watcher(peer, peak)
        record = watcher.around(lambda peer=peer: _send(peer, Load(requests, connections, timeout=60)))  # type: ignore[misc]
        each = (max(peak) - before) * 1024 / connections
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
        told(f"{connections:,} connections: {peer.name}: {failed} failed, {each:.1f} KiB each")
    return rows


class _Watcher:
    """Reads a process's memory while something is done."""

    def __init__(self, peer: Peer, seen: list[float]) -> None:
        self._peer = peer
        self._seen = seen

    def around(self, work: Callable[[], Record]) -> Record:
        async def main() -> Record:
            doing = asyncio.create_task(asyncio.to_thread(work))
            while not doing.done():
                self._seen.append(self._peer.memory())
                await asyncio.wait({doing}, timeout=0.1)
            return await doing

        return asyncio.run(main())


def bodies(peers: Sequence[Peer], home: Path, runs: int, told: Callable[[str], None]) -> list[dict[str, Any]]:
    """A body of one gibibyte down and up.

    Args:
        peers: The contestants, with replicas of `bulk_replica`.
        home: Folder for what is sent up.
        runs: Of each, alternating.
        told: Told of each outcome.
    """
    big = home / "big"
    with big.open("wb") as file:
        file.truncate(GIBIBYTE)
    found: dict[str, dict[str, list[float]]] = {peer.name: {"down": [], "up": []} for peer in peers}
    for _ in range(runs):
        for peer in peers:
            for way, options in (("down", []), ("up", ["-T", str(big), "-H", "Expect:"])):
                url = f"http://127.0.0.1:{peer.port}/{'big' if way == 'down' else 'sink'}"
                argv = ["taskset", "-c", str(CORE), "curl", "-sSf", "-o", "/dev/null", *options, url]
                began = time.perf_counter()
                subprocess.run(argv, check=True, timeout=300)
                seconds = time.perf_counter() - began
                found[peer.name][way].append(seconds)
                told(f"1 GiB {way}: {peer.name}: {seconds:.2f} s")
    return [
        {"name": name, **{f"{way}_mib_s": 1024 / median(times) for way, times in ways.items()}}
        for name, ways in found.items()
    ]
