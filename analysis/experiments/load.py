"""Load: a benchmark of any URL, in a closed loop or an open one."""

from dataclasses import asdict
from typing import Any

from matplotlib.figure import Figure

from analysis import plots
from analysis.context import Context
from analysis.load.generator import Load, Target
from analysis.load.generator import run as send
from analysis.load.record import PERCENTILES, percentile
from analysis.system import running

TITLE = "Load: closed loops and an open loop"

CLOSED, OPEN_RATE = (100, 1_000), 500.0


async def measure(context: Context, target: Target, load: Load, label: str) -> dict[str, Any]:
    """Send one load and return its figures.

    Args:
        context: Shows the progress.
        target: URL that the requests go to.
        load: Number of requests, and the kind of loop.
        label: Name of the run in plots and tables.
    """
    with context.bar(label, load.requests) as bar:
        record = await send(target, load, progress=bar.at)
    ordered = record.latencies()
    curve = [[p, percentile(ordered, p)] for p in (*range(1, 100), 99.5, 99.9)] if ordered else []
    return {
        "label": label,
        "load": asdict(load),
        **record.summary(),
        "curve": curve,
        "timeline": record.over_time(max(record.took / 50, 0.05)),
    }


async def run(context: Context) -> dict[str, Any]:
    """Measure closed loops and an open one on three sample replicas, for the report."""
    async with running(context.backend, 3) as system:
        target = Target.parse(system.url("/home"))
        runs = [
            await measure(
                context,
                target,
                Load(context.requests, clients, warm_up=context.requests // 10, seed=context.seed),
                f"closed loop, {clients:,} clients",
            )
            for clients in CLOSED
        ]
        load = Load(
            context.requests // 2, 1_000, OPEN_RATE, warm_up=context.requests // 20, seed=context.seed
        )
        runs.append(await measure(context, target, load, f"open loop, {OPEN_RATE:g} requests/s"))
    return {"url": "/home, three sample replicas", "runs": runs}


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    """Draw latency by percentile, and throughput over time."""
    figure, (left, right) = plots.panels(1, 2, result["url"])
    for one in result["runs"]:
        left.plot(
            [p for p, _ in one["curve"]], [seconds * 1000 for _, seconds in one["curve"]], label=one["label"]
        )
        times = [bucket["at"] for bucket in one["timeline"]]
        step = times[1] - times[0] if len(times) > 1 else 1.0
        right.plot(times, [bucket["answered"] / step for bucket in one["timeline"]], label=one["label"])
    left.set_yscale("log")
    left.set_xlabel("percentile")
    left.set_title("Latency, ms")
    left.legend(fontsize=8)
    right.set_xlabel("seconds")
    right.set_ylim(bottom=0)
    right.set_title("Answers a second")
    return {"load": figure}


def tell(result: dict[str, Any]) -> str:
    """Describe every run in a table."""
    head = " | ".join(f"p{p:g}" for p in PERCENTILES)
    lines = [
        f"Target: {result['url']}. Latency is in ms. In an open loop, latency begins at the scheduled start of a request.",
        "",
        f"| | requests | requests/s | failed | {head} | max | by replica |",
        "|---" * (6 + len(PERCENTILES)) + "|",
    ]
    for one in result["runs"]:
        cells = [_ms(one["percentiles"][f"{p:g}"]) for p in PERCENTILES]
        counts = ", ".join(f"{count:,}" for _, count in sorted(one["replicas"].items())) or "—"
        lines.append(
            f"| {one['label']} | {one['requests']:,} | {one['rate']:,.0f} | {one['failed']:,} "
            f"| {' | '.join(cells)} | {_ms(one['max'])} | {counts} |"
        )
        for kind, count in one["errors"].items():
            lines += ["", f"{count:,} × {kind}"]
    return "\n".join(lines)


def _ms(seconds: float | None) -> str:
    return "—" if seconds is None else f"{seconds * 1000:,.1f}"
