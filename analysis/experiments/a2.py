"""A-2: the same with two to six replicas: mean load, and how far replicas are from it."""

from typing import Any

from matplotlib.figure import Figure

from analysis import plots
from analysis.context import Context
from analysis.experiments import spread

TITLE = "A-2: more replicas, less load on each"

SIZES = range(2, 7)


async def run(context: Context) -> dict[str, Any]:
    """Measure every N."""
    sizes = (2, 3) if context.quick else SIZES
    hashed = [
        await spread.measure(context, f"ring default, N = {n}", n, ("--load-factor", "0")) for n in sizes
    ]
    bounded = [await spread.measure(context, f"bounded, N = {n}", n, ()) for n in sizes]
    return {"requests": context.requests, "hashed": hashed, "bounded": bounded}


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    """Mean load, and standard deviation."""
    figure, (left, right) = plots.panels(1, 2, f"{result['requests']:,} requests on N replicas")
    sizes = [case["replicas"] for case in result["hashed"]]
    left.plot(sizes, [case["mean"] for case in result["hashed"]], marker="o", label="mean")
    for name, label in (("hashed", "fullest, ring alone"), ("bounded", "fullest, bounded loads")):
        left.plot(
            sizes, [max(case["counts"]) for case in result[name]], marker="s", linestyle="--", label=label
        )
    left.set_title("Requests by replica")
    for name, label in (("hashed", "ring alone"), ("bounded", "bounded loads")):
        right.plot(sizes, [case["deviation"] for case in result[name]], marker="o", label=label)
    right.set_title("Standard deviation of the requests by replica")
    for place in (left, right):
        place.set_xlabel("N")
        place.set_xticks(sizes)
        place.set_ylim(bottom=0)
        place.legend()
    return {"a2": figure}


def tell(result: dict[str, Any]) -> str:
    """The table."""
    lines = [
        f"{result['requests']:,} requests for each N, by the ring `default`: alone, and with `--load-factor 1.25`.",
        "",
        "| N | mean | standard deviation, ring alone | bounded | peak to mean, ring alone | bounded |",
        "|---|---|---|---|---|---|",
    ]
    for alone, bounded in zip(result["hashed"], result["bounded"], strict=True):
        lines.append(
            f"| {alone['replicas']} | {alone['mean']:,.0f} | {alone['deviation']:.0f} | {bounded['deviation']:.0f} "
            f"| {alone['peak_to_mean']:.3f} | {bounded['peak_to_mean']:.3f} |"
        )
    return "\n".join(lines)
