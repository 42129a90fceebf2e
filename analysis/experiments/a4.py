"""A-4: the measured spread of the classic rings beside the published one and the exact one."""

import math
from typing import Any

from matplotlib.figure import Figure

from analysis import plots
from analysis.context import Context
from analysis.experiments import spread
from analysis.published import PUBLISHED, REQUESTS, exact_share
from loadbalancer.routing.ring import Ring

TITLE = "A-4: the classic rings, measured, published and computed"

NOISE = 4.0
"""Largest distance of a count from its expectation that chance explains, in standard deviations (binomial)."""


async def run(context: Context) -> dict[str, Any]:
    """Measure every ring with every number of replicas, and compute the exact shares."""
    cases = []
    for name, rows in PUBLISHED.items():
        for published in rows[:1] if context.quick else rows:
            size = len(published)
            options = ("--ring", name, "--load-factor", "0")
            case = await spread.measure(context, f"{name}, N = {size}", size, options)
            ring = Ring.build(name, range(1, size + 1))
            shares = list(exact_share(name, ring).values())
            cases.append(
                {
                    **case,
                    "ring": name,
                    "published": published,
                    "slot_share": [float(share) for share in ring.slot_share().values()],
                    "id_share": shares,
                    "noise": noise(case["counts"], shares),
                    "published_noise": noise(published, shares),
                }
            )
    return {"requests": context.requests, "published_requests": REQUESTS, "cases": cases}


def noise(counts: list[int], shares: list[float]) -> float:
    """The largest distance of a count from its expectation, in standard deviations of a binomial.

    Args:
        counts: Requests by replica.
        shares: Exact share of each replica, in the same order.
    """
    total = sum(counts)
    return max(
        abs(count - total * share) / math.sqrt(total * share * (1 - share))
        for count, share in zip(counts, shares, strict=True)
    )


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    """Draw measured, published and computed counts for the largest N, and mean and deviation for every N."""
    names = list(dict.fromkeys(case["ring"] for case in result["cases"]))
    figure, axes = plots.panels(2, len(names), "The classic rings: measured, published, computed", height=2.8)
    for place, below, name in zip(axes, axes[len(names) :], names, strict=False):
        cases = [case for case in result["cases"] if case["ring"] == name]
        case = cases[-1]
        places = range(case["replicas"])
        expected = [share * result["requests"] for share in case["id_share"]]
        published = [count * result["requests"] / result["published_requests"] for count in case["published"]]
        for shift, values, label in (
            (-0.27, case["counts"], "measured"),
            (0, published, "published"),
            (0.27, expected, "computed"),
        ):
            place.bar([n + 1 + shift for n in places], values, width=0.25, label=label)
        place.set_title(f"{name}, N = {case['replicas']}")
        place.set_xlabel("server")
        place.set_xticks([n + 1 for n in places])
        sizes = [one["replicas"] for one in cases]
        below.plot(sizes, [one["mean"] for one in cases], marker="o", label="mean load")
        below.plot(sizes, [one["deviation"] for one in cases], marker="s", label="standard deviation")
        below.set_xticks(sizes)
        below.set_xlabel("N")
        below.set_ylim(bottom=0)
    axes[0].legend(fontsize=8)
    axes[len(names)].legend(fontsize=8)
    return {"a4": figure}


def tell(result: dict[str, Any]) -> str:
    """Say whether the counts agree, and list them in a table."""
    worst = max(case["noise"] for case in result["cases"])
    worst_published = max(case["published_noise"] for case in result["cases"])
    verdict = "agrees" if max(worst, worst_published) <= NOISE else "does **not** agree"
    lines = [
        f"Each case has {result['requests']:,} requests and `--load-factor 0`. *ids* is the exact share of all 6-digit ids "
        "that hash to each server. *slots* is the exact share of the ring's slots that belong to each server. The two differ "
        "on the rings that hash with squares, because squares modulo 512 are not spread evenly. "
        f"The largest distance of a measured count from its expectation is {worst:.1f} standard deviations, that of a "
        f"published count {worst_published:.1f}. The noise of the random ids explains up to {NOISE:g}: each count {verdict} "
        "with the arithmetic.",
        "",
        "| ring | N | measured | published | ids, % | slots, % |",
        "|---|---|---|---|---|---|",
    ]
    for case in result["cases"]:
        lines.append(
            f"| {case['ring']} | {case['replicas']} | {_row(case['counts'])} | {_row(case['published'])} "
            f"| {_shares(case['id_share'])} | {_shares(case['slot_share'])} |"
        )
    return "\n".join(lines)


def _row(counts: list[int]) -> str:
    return ", ".join(str(count) for count in counts)


def _shares(shares: list[float]) -> str:
    return ", ".join(f"{share * 100:.1f}" for share in shares)
