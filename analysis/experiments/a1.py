"""A-1: the spread of 10,000 requests over three replicas, for every ring and every policy."""

from typing import Any

from matplotlib.figure import Figure

from analysis import plots
from analysis.context import Context
from analysis.experiments import spread

TITLE = "A-1: requests by replica, for every ring and policy"

REPLICAS = 3

CASES = {
    "ring classic": ("--ring", "classic", "--load-factor", "0"),
    "ring classic-modified": ("--ring", "classic-modified", "--load-factor", "0"),
    "ring classic-sha256": ("--ring", "classic-sha256", "--load-factor", "0"),
    "ring default": ("--ring", "default", "--load-factor", "0"),
    "ring default, bounded": (),
    "round-robin": ("--policy", "round-robin"),
    "weighted 2:1:1": ("--policy", "weighted-round-robin", "--weights", "Server-1=2"),
    "random": ("--policy", "random"),
    "least-connections": ("--policy", "least-connections"),
    "power-of-two": ("--policy", "power-of-two"),
}
"""The options of `serve` for each case. The first four cases hash without a bound on the load."""


async def run(context: Context) -> dict[str, Any]:
    """Measure every case."""
    return {
        "requests": context.requests,
        "cases": [
            await spread.measure(context, name, REPLICAS, options)
            for name, options in (list(CASES.items())[:7] if context.quick else CASES.items())
        ],
    }


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    """Draw a bar chart for each case."""
    title = f"{result['requests']:,} requests on {REPLICAS} replicas"
    figure, axes = plots.panels(2, 5, title, height=2.6)
    top = max(max(case["counts"]) for case in result["cases"])
    for place, case in zip(axes, result["cases"], strict=False):
        plots.bars(place, [f"S{number + 1}" for number in range(REPLICAS)], case["counts"])
        place.set_title(f"{case['label']}\npeak/mean {case['peak_to_mean']:.3f}", fontsize=8.5)
        place.set_ylim(0, top * 1.1)
        place.axhline(case["mean"], color="black", linewidth=0.8, linestyle=":")
        if place not in (axes[0], axes[5]):
            place.tick_params(labelleft=False)
    return {"a1": figure}


def tell(result: dict[str, Any]) -> str:
    """Describe the spread of every case in a table."""
    lines = [
        f"Load: {result['requests']:,} requests with random 6-digit ids, {spread.CLIENTS} at a time, on {REPLICAS} replicas. "
        "Chi-square compares the counts with an even spread. If each request goes to a random replica, chi-square exceeds "
        f"{result['cases'][0]['chi_square_bound']:.1f} in one run of a hundred.",
        "",
        "| | Server-1 | Server-2 | Server-3 | peak to mean | chi-square |",
        "|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        counts = " | ".join(f"{count:,}" for count in case["counts"])
        lines.append(
            f"| {case['label']} | {counts} | {case['peak_to_mean']:.3f} | {case['chi_square']:,.1f} |"
        )
    hashed = {case["label"]: case for case in result["cases"]}
    lines += [
        "",
        "On the ring `default`, without a bound on the load, the busiest replica gets "
        f"{hashed['ring default']['peak_to_mean'] - 1:.1%} more requests than the mean. On the ring `classic`, which has "
        f"the coursework's hash functions, it gets {hashed['ring classic']['peak_to_mean']:.2f} times the mean.",
    ]
    return "\n".join(lines)
