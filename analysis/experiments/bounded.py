"""Bounded loads: the effect of the load factor on the busiest replica when some keys are popular."""

import asyncio
import math
import random
from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from analysis import plots
from analysis.context import Context
from analysis.load.generator import Load, Target
from analysis.load.generator import run as send
from analysis.load.record import percentile
from analysis.system import System, running
from loadbalancer.routing.ring import Ring

TITLE = "Bounded loads: popular keys"

REPLICAS = 5
CLIENTS = 64
KEYS = 1_000
EXPONENT = 1.0
"""Of the Zipf distribution: the n-th key has 1/n^EXPONENT of the requests of the first."""

SAMPLES_EVERY = 0.02
"""Seconds between two samples of the requests in flight."""

FACTORS = ("0", "2", "1.5", "1.25", "1.1")


async def run(context: Context) -> dict[str, Any]:
    """Send the same requests with every load factor."""
    rng = random.Random(context.seed)
    weights = list(accumulate(1 / rank**EXPONENT for rank in range(1, KEYS + 1)))
    keys = [f"key-{rank}" for rank in rng.choices(range(KEYS), cum_weights=weights, k=context.requests)]
    ring = Ring.build("default", range(1, REPLICAS + 1))
    home = {key: f"Server-{ring.owner(key)}" for key in set(keys)}
    factors = FACTORS[::2] if context.quick else FACTORS
    cases = [await _measure(context, float(factor), keys, home) for factor in factors]
    return {"requests": context.requests, "cases": cases}


async def _measure(
    context: Context, factor: float, keys: Sequence[str], home: Mapping[str, str]
) -> dict[str, Any]:
    """Send the requests with one load factor.

    Args:
        context: Says where replicas run, and shows the progress.
        factor: The load factor; 0: no bound.
        keys: Key of each request.
        home: Replica that owns each key on the ring.
    """
    peaks: dict[str, int] = {}
    async with running(context.backend, REPLICAS, ("--load-factor", f"{factor:g}")) as system:
        target = Target.parse(system.url("/home"))
        with context.bar(f"load factor {_name(factor)}", len(keys)) as bar:
            sampling = asyncio.create_task(_sample(system, peaks))
            record = await send(
                target,
                Load(len(keys), CLIENTS, seed=context.seed),
                make=lambda number: target.get(keys[number]),
                progress=bar.at,
            )
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)
    away = sum(
        record.replicas[replica] != home[keys[number]]
        for number, replica in zip(record.number, record.replica, strict=True)
        if replica
    )
    counts = record.by_replica()
    summary = record.summary()
    return {
        "factor": factor,
        "bound": bound(factor),
        "peak_in_flight": max(peaks.values()),
        "away": away / len(record.number),
        "peak_to_mean": max(counts.values()) / fmean(counts.values()),
        "p99": percentile(record.latencies(), 99),
        "rate": summary["rate"],
        "failed": summary["failed"],
    }


def bound(factor: float) -> int | None:
    """The most requests that a replica may have in flight while every client waits for an answer.

    It is ⌈c m / n⌉ for the load factor c, m clients and n replicas (Mirrokni, Thorup, Zadimoghaddam, "Consistent
    Hashing with Bounded Loads", 2016).

    Args:
        factor: The load factor; 0: no bound, and None is returned.
    """
    return math.ceil(factor * CLIENTS / REPLICAS - 1e-9) if factor else None


async def _sample(system: System, peaks: dict[str, int]) -> None:
    """Keep the highest number of requests in flight of each replica, until cancelled."""
    while True:
        for replica in await system.replicas():
            peaks[replica["hostname"]] = max(peaks.get(replica["hostname"], 0), replica["in_flight"])
        await asyncio.sleep(SAMPLES_EVERY)


def _name(factor: float) -> str:
    return f"{factor:g}" if factor else "off"


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    """Draw the peak of requests in flight, the requests away from home, and p99."""
    figure, axes = plots.panels(1, 3, "Popular keys (Zipf, s = 1): effect of the load factor")
    names = [_name(case["factor"]) for case in result["cases"]]
    plots.bars(axes[0], names, [case["peak_in_flight"] for case in result["cases"]])
    axes[0].set_title(f"Peak in flight on one replica\n({CLIENTS} in all)")
    plots.bars(axes[1], names, [case["away"] * 100 for case in result["cases"]], form="{:.1f}")
    axes[1].set_title("Requests away from home, %")
    plots.bars(axes[2], names, [case["p99"] * 1000 for case in result["cases"]], form="{:.0f}")
    axes[2].set_title("p99, ms")
    for place in axes:
        place.set_xlabel("load factor")
    return {"bounded": figure}


def tell(result: dict[str, Any]) -> str:
    """Describe every load factor in a table."""
    lines = [
        f"Load: {result['requests']:,} requests for {KEYS:,} keys from {CLIENTS} clients in a closed loop, on {REPLICAS} replicas. "
        "The popularity of the n-th key is proportional to 1/n. *Peak in flight* is the highest count on one replica in "
        f"`/lb/replicas`, read every {SAMPLES_EVERY * 1000:g} ms. A request is *away from home* if a replica other than the "
        "owner of its key answers it. *Peak to mean* compares the requests of the busiest replica with the mean.",
        "",
        "| load factor | bound | peak in flight | requests away from home | peak to mean | p99, ms | requests/s | failed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        lines.append(
            f"| {_name(case['factor'])} | {case['bound'] or '—'} | {case['peak_in_flight']} | {case['away']:.1%} | {case['peak_to_mean']:.2f} "
            f"| {case['p99'] * 1000:.0f} | {case['rate']:,.0f} | {case['failed']} |"
        )
    return "\n".join(lines)
