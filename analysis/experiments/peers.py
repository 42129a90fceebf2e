"""Peers: both lanes beside nginx and HAProxy, in one run on one machine."""

import asyncio
from typing import Any

from matplotlib.figure import Figure

from analysis import plots
from analysis.bench import comparison
from analysis.bench.peers import ALL_PEERS
from analysis.context import Context

TITLE = "Peers: comparison with nginx and HAProxy"

CONNECTIONS = (64, 1000)


async def run(context: Context) -> dict[str, Any]:
    """Run the comparison of `make bench` with fewer and shorter runs."""
    runs, seconds = (1, 1) if context.quick else (3, 2)
    total = runs * len(CONNECTIONS) * len(ALL_PEERS)
    done = 0
    with context.bar("peers", total) as bar:

        def advance(line: str) -> None:
            nonlocal done
            done += 1
            bar.at(done)

        try:
            results = await asyncio.to_thread(comparison.compare, runs, seconds, CONNECTIONS, advance)
        except comparison.ComparisonError as error:
            return {"missing": str(error), "rows": []}
    return {"missing": None, "runs": runs, "seconds": seconds, "rows": comparison.medians(results)}


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    """Draw throughput, and CPU time for a request."""
    if result["missing"]:
        return {}
    figure, axes = plots.panels(
        1, 3, "Requests a second on one core, compared with nginx and HAProxy", height=3.6
    )
    for place, connections in zip(axes, CONNECTIONS, strict=False):
        rows = [row for row in result["rows"] if row["connections"] == connections]
        plots.bars(place, [row["name"] for row in rows], [row["rate"] for row in rows])
        place.set_title(f"{connections:,} connections: requests/s", fontsize=10)
        plots.slant(place)
    rows = [
        row
        for row in result["rows"]
        if row["connections"] == CONNECTIONS[0] and row["memory"] and "asgi" not in row["name"]
    ]
    names = [row["name"] for row in rows]
    axes[2].bar(names, [row["user_us"] for row in rows], label="user", width=0.7)
    axes[2].bar(
        names,
        [row["system_us"] for row in rows],
        bottom=[row["user_us"] for row in rows],
        label="system",
        width=0.7,
    )
    axes[2].set_title("CPU for a request, µs", fontsize=10)
    plots.slant(axes[2])
    axes[2].legend(fontsize=8)
    return {"peers": figure}


def tell(result: dict[str, Any]) -> str:
    """Describe the medians in one table for each number of connections."""
    if result["missing"]:
        return f"Not run: {result['missing']}."
    lines = [
        f"Median of {result['runs']} alternating runs of {result['seconds']} s; `make bench` runs longer. Each load balancer is "
        "pinned to one core, the load generator (wrk) and the replicas to another. The ratios within a run are comparable "
        "between machines, the absolute figures are not. *This* is the load balancer of this project.",
        "",
    ]
    for connections in CONNECTIONS:
        lines += comparison.table(result["rows"], connections)
    return "\n".join(lines).rstrip()
