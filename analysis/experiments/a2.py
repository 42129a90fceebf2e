"""A-2: the spread of the same requests over two to six replicas: its mean and its standard deviation."""

from typing import Any

from matplotlib.figure import Figure

from analysis import plots
from analysis.context import Context
from analysis.experiments import spread

TITLE = "A-2: load by number of replicas"

SIZES = range(2, 7)


async def run(context: Context) -> dict[str, Any]:
    """Measure every number of replicas."""
    sizes = (2, 3) if context.quick else SIZES
    hashed = [
        await spread.measure(context, f"ring default, N = {n}", n, ("--load-factor", "0")) for n in sizes
    ]
    bounded = [await spread.measure(context, f"bounded, N = {n}", n, ()) for n in sizes]
    return {"requests": context.requests, "hashed": hashed, "bounded": bounded}


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    """Draw the mean load and the standard deviation."""
    figure, (left, right) = plots.panels(1, 2, f"{result['requests']:,} requests on N replicas")
    sizes = [case["replicas"] for case in result["hashed"]]
    left.plot(sizes, [case["mean"] for case in result["hashed"]], marker="o", label="mean")
    for name, label in (("hashed", "busiest, no bound"), ("bounded", "busiest, bounded loads")):
        left.plot(
            sizes, [max(case["counts"]) for case in result[name]], marker="s", linestyle="--", label=label
        )
    left.set_title("Requests on a replica")
    for name, label in (("hashed", "no bound"), ("bounded", "bounded loads")):
        right.plot(sizes, [case["deviation"] for case in result[name]], marker="o", label=label)
    right.set_title("Standard deviation of the requests on a replica")
    for place in (left, right):
        place.set_xlabel("N")
        place.set_xticks(sizes)
        place.set_ylim(bottom=0)
        place.legend()
    return {"a2": figure}


def tell(result: dict[str, Any]) -> str:
    """Describe the spread for every number of replicas in a table."""
    lines = [
        f"The ring `default` spreads {result['requests']:,} requests over N replicas: first without a bound on the load "
        "(`--load-factor 0`), then with bounded loads (`--load-factor 1.25`).",
        "",
        "| N | mean | standard deviation, no bound | bounded | peak to mean, no bound | bounded |",
        "|---|---|---|---|---|---|",
    ]
    for alone, bounded in zip(result["hashed"], result["bounded"], strict=True):
        lines.append(
            f"| {alone['replicas']} | {alone['mean']:,.0f} | {alone['deviation']:.0f} | {bounded['deviation']:.0f} "
            f"| {alone['peak_to_mean']:.3f} | {bounded['peak_to_mean']:.3f} |"
        )
    return "\n".join(lines)
