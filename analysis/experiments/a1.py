"""A-1: 10,000 requests on three replicas, for every ring and every policy."""

from typing import Any

from matplotlib.figure import Figure

from analysis import plots
from analysis.context import Context
from analysis.experiments import spread

TITLE = "A-1: who gets how many of the requests"

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
"""What is compared: its name, and the options for it. The first four hash and do nothing else."""


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
    """A bar chart for each case."""
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
    """The table."""
    lines = [
        f"{result['requests']:,} requests with random 6-digit ids, {spread.CLIENTS} at a time, {REPLICAS} replicas. "
        "Chi-square is against an even spread; an even one exceeds "
        f"{result['cases'][0]['chi_square_bound']:.1f} in one draw of a hundred.",
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
        f"The ring `default` has its fullest replica {hashed['ring default']['peak_to_mean'] - 1:.1%} above the mean by "
        f"hashing alone; the coursework's own hash functions (`classic`) give one replica "
        f"{hashed['ring classic']['peak_to_mean']:.2f} times the mean.",
    ]
    return "\n".join(lines)
