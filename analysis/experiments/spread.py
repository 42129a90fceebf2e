"""Shared by A-1, A-2 and A-4: so many requests with drawn ids through a real load balancer, counted by replica."""

import math
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

from analysis.context import Context
from analysis.load.generator import Load, Target, run
from analysis.system import ExperimentError, running
from loadbalancer.distribution import draw_ids

CLIENTS = 64


async def measure(context: Context, label: str, replicas: int, options: Sequence[str]) -> dict[str, Any]:
    """Send the requests, and count who has answered.

    Args:
        context: Says how many, and how ids are drawn.
        label: What is measured, for people.
        replicas: N.
        options: Of `serve`.

    Raises:
        ExperimentError: A request failed: then the counts mean nothing.
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
    """Peak to mean, standard deviation and chi-square against an even spread.

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
    """What chi-square exceeds in one draw of a hundred when the spread is even.

    (Wilson, Hilferty, "The Distribution of Chi-Square", 1931; within 2 % of the tables from two degrees of
    freedom on.)

    Args:
        degrees: Of freedom: one less than there are replicas.
    """
    if degrees == 0:
        return 0.0
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + 2.3263 * math.sqrt(spread)) ** 3
