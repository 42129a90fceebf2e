"""Requests with random ids through a real load balancer, counted by replica: shared by A-1, A-2 and A-4."""

import math
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

from analysis.context import Context
from analysis.load.generator import Load, Target, run
from analysis.system import ExperimentError, running
from loadbalancer.cli.distribution import draw_ids

CLIENTS = 64


async def measure(context: Context, label: str, replicas: int, options: Sequence[str]) -> dict[str, Any]:
    """Send the requests, and count the answers of each replica.

    Args:
        context: Gives the number of requests and the seed of their ids.
        label: Name of the case in progress bars, plots and tables.
        replicas: Number of replicas.
        options: Further options of `serve`.

    Raises:
        ExperimentError: A request failed, so the counts are incomplete.
    """
    ids = draw_ids(context.requests, context.seed)
    async with running(context.backend, replicas, options) as system:
        target = Target.parse(system.url("/home"))
        with context.bar(label, context.requests) as bar:
            record = await run(
                target,
                Load(context.requests, CLIENTS),
                make=lambda number: target.get(ids[number]),
                progress=bar.at,
            )
    if record.errors:
        raise ExperimentError(
            f"{label}: {sum(record.errors.values())} requests failed: {dict(record.errors)}"
        )
    answered = record.by_replica()
    counts = [answered.get(f"Server-{number}", 0) for number in range(1, replicas + 1)]
    return {"label": label, "replicas": replicas, "counts": counts, **figures(counts)}


def figures(counts: Sequence[int]) -> dict[str, float]:
    """Mean, standard deviation, peak to mean, and chi-square against an even spread with its bound.

    Args:
        counts: Requests by replica.
    """
    mean = fmean(counts)
    return {
        "mean": mean,
        "deviation": pstdev(counts),
        "peak_to_mean": max(counts) / mean,
        "chi_square": sum((count - mean) ** 2 for count in counts) / mean,
        "chi_square_bound": chi_square_bound(len(counts) - 1),
    }


def chi_square_bound(degrees: int) -> float:
    """The value that chi-square exceeds in one run of a hundred if each request goes to a random replica.

    The approximation is within 2 % of the published tables (Wilson, Hilferty, "The Distribution of Chi-Square",
    1931).

    Args:
        degrees: Degrees of freedom: the number of replicas less one.
    """
    if degrees == 0:
        return 0.0
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + 2.3263 * math.sqrt(spread)) ** 3
