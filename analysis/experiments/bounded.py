"""Bounded loads: keys that are not equally popular, and what the bound does to the busiest replica."""

import asyncio
import math
import random
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
SAMPLES_EVERY = 0.02
"""Seconds between two looks at the counts."""

FACTORS = ("0", "2", "1.5", "1.25", "1.1")


async def run(context: Context) -> dict[str, Any]:
    """The same requests with every load factor."""
    rng = random.Random(context.seed)
    weights = list(accumulate(1 / rank**EXPONENT for rank in range(1, KEYS + 1)))
    keys = [f"key-{rank}" for rank in rng.choices(range(KEYS), cum_weights=weights, k=context.requests)]
    ring = Ring.build("default", range(1, REPLICAS + 1))
    home = {key: f"Server-{ring.owner(key)}" for key in set(keys)}
    cases = []
    for factor in FACTORS[::2] if context.quick else FACTORS:
        async with running(context.backend, REPLICAS, ("--load-factor", factor)) as system:
            target = Target.parse(system.url("/home"))
            with context.bar(f"load factor {factor if factor != '0' else 'off'}", context.requests) as bar:
                peaks: dict[str, int] = {}
                sampling = asyncio.create_task(_sample(system, peaks))
                record = await send(
                    target,
                    Load(context.requests, CLIENTS, seed=context.seed),
                    make=lambda number, target=target: target.get(keys[number]),  # type: ignore[misc]
                    progress=bar.at,
                )
                sampling.cancel()
                await asyncio.gather(sampling, return_exceptions=True)
        away = sum(
            record.replicas[who] != home[keys[number]]
            for number, who in zip(record.number, record.who, strict=True)
            if who
        )
        counts = record.by_replica()
        cases.append(
            {
                "factor": float(factor),
                "bound": bound(float(factor)),
                "peak_in_flight": max(peaks.values()),
                "away": away / len(record.number),
                "peak_to_mean": max(counts.values()) / fmean(counts.values()),
                "p99": percentile(record.latencies(), 99),
                "rate": record.summary()["rate"],
                "failed": record.summary()["failed"],
            }
        )
    return {"requests": context.requests, "cases": cases}


def bound(factor: float) -> int | None:
    """How many requests a replica may hold when all clients wait: ⌈c m / n⌉, and None without a bound."""
    return math.ceil(factor * CLIENTS / REPLICAS - 1e-9) if factor else None


async def _sample(system: System, peaks: dict[str, int]) -> None:
    """Look again and again how many requests each replica has."""
    while True:
        for replica in await system.replicas():
            peaks[replica["hostname"]] = max(peaks.get(replica["hostname"], 0), replica["in_flight"])
        await asyncio.sleep(SAMPLES_EVERY)


def _name(case: dict[str, Any]) -> str:
    return f"{case['factor']:g}" if case["factor"] else "off"


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    """Peak in flight, keys away from home, and p99."""
    figure, axes = plots.panels(1, 3, "Popular keys (Zipf, s = 1): what the load factor does")
    names = [_name(case) for case in result["cases"]]
    plots.bars(axes[0], names, [case["peak_in_flight"] for case in result["cases"]])
    axes[0].set_title(f"Most in flight on one replica\n({CLIENTS} in all)")
    plots.bars(axes[1], names, [case["away"] * 100 for case in result["cases"]], form="{:.1f}")
    axes[1].set_title("Requests away from home, %")
    plots.bars(axes[2], names, [case["p99"] * 1000 for case in result["cases"]], form="{:.0f}")
    axes[2].set_title("p99, ms")
    for place in axes:
        place.set_xlabel("load factor")
    return {"bounded": figure}


def tell(result: dict[str, Any]) -> str:
    """The table."""
    lines = [
        f"{result['requests']:,} requests for {KEYS:,} keys, the n-th as popular as 1/n; {CLIENTS} clients in a closed loop, {REPLICAS} "
        f"replicas. *In flight* is what the load balancer says of its replicas, asked every {SAMPLES_EVERY * 1000:g} ms.",
        "",
        "| load factor | bound | most in flight on one | requests away from home | peak to mean | p99, ms | requests/s | failed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        lines.append(
            f"| {_name(case)} | {case['bound'] or '—'} | {case['peak_in_flight']} | {case['away']:.1%} | {case['peak_to_mean']:.2f} "
            f"| {case['p99'] * 1000:.0f} | {case['rate']:,.0f} | {case['failed']} |"
        )
    return "\n".join(lines)
