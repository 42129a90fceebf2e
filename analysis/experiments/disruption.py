"""Disruption: the share of keys that move when a replica joins or leaves, for every ring and for modulo N."""

import math
import random
from typing import Any

from matplotlib.figure import Figure

from analysis import plots
from analysis.context import Context
from loadbalancer.routing.hashing import hash_text
from loadbalancer.routing.ring import PRESETS, Ring, capacity

TITLE = "Disruption: keys that move when a replica joins or leaves"

KEYS = 20_000


async def run(context: Context) -> dict[str, Any]:
    """Compare the owners of many keys before and after a change. No load balancer is started."""
    rng = random.Random(context.seed)
    keys = [str(rng.randint(100_000, 999_999)) for _ in range(2_000 if context.quick else KEYS)]
    largest = 6 if context.quick else 100
    rows = []
    with context.bar("keys that move", (largest - 1) * len(PRESETS)) as bar:
        for number, name in enumerate(PRESETS):
            for size in range(2, min(largest, capacity(name) - 1) + 1):
                rows.append({"hash": name, **_moved(name, size, keys, rng)})
                bar.at(number * (largest - 1) + size - 1)
    for size in range(2, largest + 1):
        hashes = [hash_text(key) for key in keys]
        joined = sum(h % size != h % (size + 1) for h in hashes) / len(keys)
        left = sum(h % size != h % (size - 1) for h in hashes) / len(keys)
        rows.append({"hash": "modulo N", "size": size, "joined": joined, "left": left, "between": None})
    return {"keys": len(keys), "rows": rows}


def _moved(name: str, size: int, keys: list[str], rng: random.Random) -> dict[str, Any]:
    """Shares of the keys that move on a ring when one member joins, and when a random one leaves.

    Args:
        name: The ring's preset.
        size: Members before the change.
        keys: The keys.
        rng: Draws the member that leaves.
    """
    before = Ring.build(name, range(1, size + 1))
    after = before.changed_to(range(1, size + 2))
    leaver = rng.choice(before.numbers)
    without = before.changed_to([number for number in before.numbers if number != leaver])
    owners = [before.owner(key) for key in keys]
    joined = sum(owner != after.owner(key) for key, owner in zip(keys, owners, strict=True))
    left = between = 0
    for key, owner in zip(keys, owners, strict=True):
        moved = owner != without.owner(key)
        left += moved
        between += moved and owner != leaver
    total = len(keys)
    return {"size": size, "joined": joined / total, "left": left / total, "between": between / total}


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    """Draw the share of keys that move, by N, beside the ideal."""
    figure, axes = plots.panels(1, 2, "Keys that move when one replica joins or leaves")
    for place, kind, title in zip(axes, ("joined", "left"), ("one joins N", "one of N leaves"), strict=True):
        for name in dict.fromkeys(row["hash"] for row in result["rows"]):
            rows = [row for row in result["rows"] if row["hash"] == name]
            place.plot(
                [row["size"] for row in rows],
                [row[kind] * 100 or math.nan for row in rows],
                label=name,
                linewidth=1.2,
            )
        sizes = sorted({row["size"] for row in result["rows"]})
        ideal = [100 / (size + 1 if kind == "joined" else size) for size in sizes]
        place.plot(sizes, ideal, color="black", linestyle=":", label="ideal")
        place.set_yscale("log")
        place.set_title(title)
        place.set_xlabel("N")
        place.set_ylabel("% of the keys")
    axes[0].legend(fontsize=8)
    return {"disruption": figure}


def tell(result: dict[str, Any]) -> str:
    """Compare every ring with the ideal in a table."""
    lines = [
        f"The owners of {result['keys']:,} keys are compared before and after each change. The ideal share of keys that move is "
        "1/(N + 1) when a replica joins N others, and 1/N when one of N leaves. The table gives the share that moves as a "
        "multiple of the ideal: the mean and the maximum over all N. The replica that leaves is chosen at random. *Between "
        "others* is the largest share of keys that move from one remaining replica to another.",
        "",
        "| hash | N | join: mean × ideal | maximum | leave: mean × ideal | maximum | between others, maximum |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["hash"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["hash"] == name]
        joins = [row["joined"] * (row["size"] + 1) for row in rows]
        leaves = [row["left"] * row["size"] for row in rows]
        between = [row["between"] for row in rows if row["between"] is not None]
        shown = f"{max(between):.2%}" if between else "—"
        lines.append(
            f"| {name} | {rows[0]['size']}…{rows[-1]['size']} | {sum(joins) / len(joins):.2f} | {max(joins):.2f} "
            f"| {sum(leaves) / len(leaves):.2f} | {max(leaves):.2f} | {shown} |"
        )
    return "\n".join(lines)
