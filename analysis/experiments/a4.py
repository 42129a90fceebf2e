"""A-4: the classic rings, beside what was published of them and what their arithmetic says exactly."""

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
"""Standard deviations of a binomial that a count may be from its expectation."""


async def run(context: Context) -> dict[str, Any]:
    """Measure every ring at every N, and work out what should have come."""
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
    """How many standard deviations of a binomial the count furthest from its expectation is away from it.

    Args:
        counts: By replica.
        shares: The exact ones.
    """
    total = sum(counts)
    return max(
        abs(count - total * share) / math.sqrt(total * share * (1 - share))
        for count, share in zip(counts, shares, strict=True)
    )


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    """Measured, published and computed side by side, for the largest N; and the deviation for each N."""
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
    """The table, and whether all agrees."""
    worst = max(case["noise"] for case in result["cases"])
    worst_published = max(case["published_noise"] for case in result["cases"])
    verdict = "agrees" if max(worst, worst_published) <= NOISE else "does **not** agree"
    lines = [
        f"`--load-factor 0`, {result['requests']:,} requests each. *ids* is the exact share of all 6-digit ids that reach each "
        "server, *slots* that of the ring's slots; ids do not fall on all slots alike, because squares modulo 512 do not. "
        f"Of the measured counts the one furthest from its expectation is {worst:.1f} standard deviations away, of the "
        f"published ones {worst_published:.1f}: each {verdict} with the arithmetic within the noise of the draw "
        f"({NOISE:g} standard deviations).",
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
