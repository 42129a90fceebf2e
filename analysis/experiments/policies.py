"""Policies: latency with each policy when one replica is ten times slower than the others."""

import sys
from typing import Any

from matplotlib.figure import Figure

from analysis import plots
from analysis.context import Context
from analysis.load.generator import Load, Target
from analysis.load.generator import run as send
from analysis.system import running

TITLE = "Policies: one slow replica"

REPLICAS = 4
DELAY = 0.010
"""Seconds that the other replicas take for a request."""

RATE = 400.0
"""Requests a second."""

CASES = {
    "hash, unbounded": ("--load-factor", "0"),
    "hash, bounded": (),
    "round-robin": ("--policy", "round-robin"),
    "random": ("--policy", "random"),
    "least-connections": ("--policy", "least-connections"),
    "power-of-two": ("--policy", "power-of-two"),
}


async def run(context: Context) -> dict[str, Any]:
    """Send the same load with every policy. Replicas are always processes, because they run `slow_replica`."""
    command = f"env DELAY={DELAY} SLOW=Server-1 {sys.executable} -m analysis.slow_replica"
    requests = max(context.requests // 4, 200)
    cases = []
    for name, options in CASES.items():
        async with running("process", REPLICAS, ("--command", command, *options)) as system:
            target = Target.parse(system.url("/home"))
            load = Load(requests, concurrency=2_000, rate=RATE, warm_up=requests // 10, seed=context.seed)
            with context.bar(name, requests) as bar:
                record = await send(target, load, progress=bar.at)
        summary = record.summary()
        cases.append(
            {
                "policy": name,
                "p50": summary["percentiles"]["50"],
                "p90": summary["percentiles"]["90"],
                "p99": summary["percentiles"]["99"],
                "failed": summary["failed"],
                "slow_share": summary["replicas"].get("Server-1", 0) / requests,
            }
        )
    return {"requests": requests, "cases": cases}


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    """Draw the percentiles, and the share of the slow replica."""
    figure, axes = plots.panels(1, 2, "One of four replicas is ten times slower", height=3.6)
    names = [case["policy"] for case in result["cases"]]
    for shift, percent in ((-0.27, "p50"), (0, "p90"), (0.27, "p99")):
        places = [place + shift for place in range(len(names))]
        drawn = axes[0].bar(
            places, [case[percent] * 1000 for case in result["cases"]], width=0.25, label=percent
        )
        axes[0].bar_label(drawn, fmt="{:.0f}", fontsize=8)
    axes[0].set_xticks(range(len(names)), names)
    axes[0].set_title("Latency, ms")
    axes[0].legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.7, 1.0), ncols=3)
    plots.bars(axes[1], names, [case["slow_share"] * 100 for case in result["cases"]], form="{:.1f}")
    axes[1].set_title("Requests on the slow replica, %")
    for place in axes:
        plots.slant(place)
    return {"policies": figure}


def tell(result: dict[str, Any]) -> str:
    """Describe every policy in a table."""
    lines = [
        f"Load: {result['requests']:,} requests in an open loop, {RATE:g} a second, on {REPLICAS} replicas. Server-1 takes "
        f"{DELAY * 10_000:g} ms for a request, the other three take {DELAY * 1000:g} ms.",
        "",
        "| policy | p50, ms | p90, ms | p99, ms | share of the slow replica | failed |",
        "|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        lines.append(
            f"| {case['policy']} | {case['p50'] * 1000:.1f} | {case['p90'] * 1000:.1f} | {case['p99'] * 1000:.1f} "
            f"| {case['slow_share']:.1%} | {case['failed']} |"
        )
    return "\n".join(lines)
