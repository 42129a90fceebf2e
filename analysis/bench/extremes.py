"""Beyond the usual: the tail at half of the peak, thousands of connections, and bodies of a gibibyte."""

import asyncio
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from analysis.bench.contest import Result, measure
from analysis.bench.peers import LOAD_CORE, Peer, on_the_load_core
from analysis.bench.traffic import request, varied
from analysis.load.generator import Load, Target, run
from analysis.load.record import Record

GIBIBYTE = 1 << 30

PEAK = 64
"""Connections at which the peak is reached."""

FEW = (1, 2, 3, 4, 6, 8, 12, 16, 24)
"""Numbers of connections among which one makes half of the peak."""


def half_load(
    peers: Sequence[Peer], runs: int, seconds: int, told: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The tail of each at about half of its own peak: with as many connections as come nearest to that.

    Args:
        peers: The contestants.
        runs: Of each, alternating.
        seconds: Of each run.
        told: Told of each run's outcome.
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
            told(f"{peer.name}, {result.connections}: {result.rates[-1]:,.0f}/s, p99 {result.p99[-1]:.2f} ms")
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
    """How many connections come nearest to a rate: more of them do not make it less."""
    away: dict[int, float] = {}
    for few in FEW:
        reached = varied(peer, few, 1).rate
        away[few] = abs(reached - rate)
        if reached >= rate:
            break
    return min(away, key=away.__getitem__)


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
        seen = [before]
        load = Load(requests, connections, timeout=60, together=True)
        record = asyncio.run(_watched(peer, load, seen))
        each = (max(seen) - before) * 1024 / connections
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


def _send(peer: Peer, load: Load) -> Record:
    """Load a contestant from the core of everything else."""
    host = f"127.0.0.1:{peer.port}"
    with on_the_load_core():
        return uvloop.run(run(Target.parse(peer.url("/")), load, lambda number: request(number, host)))


async def _watched(peer: Peer, load: Load, seen: list[float]) -> Record:
    """Load a contestant, and read its memory meanwhile."""
    doing = asyncio.create_task(asyncio.to_thread(_send, peer, load))
    while not doing.done():
        seen.append(peer.memory())
        await asyncio.wait({doing}, timeout=0.1)
    return await doing


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
                url = peer.url("/big" if way == "down" else "/sink")
                argv = ["taskset", "-c", str(LOAD_CORE), "curl", "-sSf", "-o", "/dev/null", *options, url]
                began = time.perf_counter()
                subprocess.run(argv, check=True, timeout=300)
                seconds = time.perf_counter() - began
                found[peer.name][way].append(seconds)
                told(f"1 GiB {way}: {peer.name}: {seconds:.2f} s")
    return [
        {"name": name, **{f"{way}_mib_s": 1024 / median(times) for way, times in ways.items()}}
        for name, ways in found.items()
    ]
