"""Scale: how long `/add` and `/rm` take, and what rings and policies cost as N grows."""

import shutil
import subprocess
import time
from collections.abc import Callable
from random import Random
from typing import Any

from matplotlib.figure import Figure

from analysis import plots
from analysis.context import Backend, Context
from analysis.system import running
from loadbalancer.routing.policies import make_policy
from loadbalancer.routing.ring import PRESETS, Ring, capacity
from loadbalancer.routing.upstream import Upstream

TITLE = "Scale: how long changes take, and what a choice costs"

STEPS: dict[Backend, tuple[int, ...]] = {"process": tuple(range(1, 21)), "docker": (1, 2, 4, 8, 12, 16, 20)}
"""How many replicas are added and removed at a time; a container takes longer, so that fewer steps must do."""

POLICIES = ("round-robin", "weighted-round-robin", "random", "least-connections", "power-of-two")

SIZES = (1, 3, 10, 30, 56, 100, 128, 300, 1_000, 3_000, 10_000)

LOOKUPS = 20_000


def engine_answers() -> bool:
    """Whether containers can be had, and the sample replica's image is there."""
    if shutil.which("docker") is None:
        return False
    image = ["docker", "image", "inspect", "loadbalancer-server:latest"]
    try:
        return subprocess.run(image, capture_output=True, timeout=20).returncode == 0
    except subprocess.TimeoutExpired:
        return False


async def run(context: Context) -> dict[str, Any]:
    """Change a real fleet; then time the pure parts."""
    backends: list[Backend] = ["process"]
    if context.backend == "docker" or (engine_answers() and not context.quick):
        backends.append("docker")
    changes = []
    for backend in backends:
        steps = (1, 2) if context.quick else STEPS[backend]
        async with running(backend, 1) as system:
            with context.bar(f"/add and /rm ({backend})", len(steps)) as bar:
                for done, n in enumerate(steps, 1):
                    names = [f"extra-{number}" for number in range(n)]
                    body = {"n": n, "hostnames": names}
                    added = await system.change("POST", "/add", body)
                    removed = await system.change("DELETE", "/rm", body)
                    changes.append({"backend": backend, "n": n, "add": added, "rm": removed})
                    bar.at(done)
    sizes = SIZES[:3] if context.quick else SIZES
    with context.bar("rings and policies", len(sizes)) as bar:
        choices = []
        for done, size in enumerate(sizes, 1):
            choices += _choices(size)
            bar.at(done)
    return {"changes": changes, "choices": choices, "docker": "docker" in backends}


def _choices(size: int) -> list[dict[str, Any]]:
    """Time what can hold so many members."""
    upstreams = [Upstream(f"Server-{n}", n, "127.0.0.1", n) for n in range(1, size + 1)]
    keys = [str(number) for number in range(LOOKUPS)]
    empty = Ring.build("default", ())
    rows = []
    for name in PRESETS:
        if size > capacity(name):
            continue
        build = _seconds(lambda name=name: Ring.build(name, range(1, size + 1)))  # type: ignore[misc]
        ring = Ring.build(name, range(1, size + 1))
        join = _seconds(lambda ring=ring: ring.changed_to(range(2, size + 1))) if size > 1 else None  # type: ignore[misc]
        rows.append(
            {
                "what": f"ring {name}",
                "size": size,
                "build": build,
                "change": join,
                "pick": _each(keys, ring.owner),
            }
        )
        if name == "default":
            hashing = make_policy("consistent-hash", upstreams, ring=ring, load_factor=1.25, rng=Random(1))
            for upstream in upstreams:
                upstream.count(2)
            rows.append({"what": "consistent-hash, bounded", "size": size, "pick": _each(keys, hashing.pick)})
    for policy in POLICIES:
        chooser = make_policy(policy, upstreams, ring=empty, load_factor=0, rng=Random(1))
        few = keys[: max(LOOKUPS * 10 // max(size, 10), 50)]
        rows.append({"what": policy, "size": size, "pick": _each(few, chooser.pick)})
    return rows


def _seconds(work: Callable[[], object]) -> float:
    """The best of three."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def _each(keys: list[str], pick: Callable[[str], object]) -> float:
    def all_of_them() -> None:
        for key in keys:
            pick(key)

    return _seconds(all_of_them) / len(keys)


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    """Changes of the fleet, and the cost of a choice."""
    figure, (left, right) = plots.panels(1, 2, "Scale", height=3.8)
    for backend in dict.fromkeys(row["backend"] for row in result["changes"]):
        rows = [row for row in result["changes"] if row["backend"] == backend]
        sizes = [row["n"] for row in rows]
        left.plot(sizes, [row["add"] for row in rows], marker="o", markersize=3, label=f"/add, {backend}")
        left.plot(
            sizes,
            [row["rm"] for row in rows],
            marker="s",
            markersize=3,
            linestyle="--",
            label=f"/rm, {backend}",
        )
    left.set_title("Seconds until /add n or /rm n answers")
    left.set_xlabel("n")
    left.set_ylim(bottom=0)
    left.legend(fontsize=8)
    for what in dict.fromkeys(row["what"] for row in result["choices"]):
        rows = [row for row in result["choices"] if row["what"] == what]
        right.plot(
            [row["size"] for row in rows],
            [row["pick"] * 1e6 for row in rows],
            marker=".",
            label=what,
            linestyle="--" if what.startswith("ring") else "-",
        )
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_title("µs to choose a replica")
    right.set_xlabel("N")
    figure.legend(*right.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4)
    return {"scale": figure}


def tell(result: dict[str, Any]) -> str:
    """The tables."""
    lines = ["| n | " + " | ".join(f"/add, {b}, s | /rm, {b}, s" for b in _backends(result)) + " |"]
    lines.append("|---" * (1 + 2 * len(_backends(result))) + "|")
    by_size: dict[int, dict[str, dict[str, Any]]] = {}
    for row in result["changes"]:
        by_size.setdefault(row["n"], {})[row["backend"]] = row
    for n, rows in by_size.items():
        cells = [
            f"{rows[b]['add']:.2f} | {rows[b]['rm']:.2f}" if b in rows else "— | —" for b in _backends(result)
        ]
        lines.append(f"| {n} | {' | '.join(cells)} |")
    if not result["docker"]:
        lines += [
            "",
            "Containers were not timed: no engine answered, or it had no image of the sample replica.",
        ]
    sizes = sorted({row["size"] for row in result["choices"]})
    lines += [
        "",
        "Starting a replica is starting an interpreter: what limits `/add` is the machine's cores, not the load balancer. "
        "What a choice costs, in µs, all on one core; "
        f"a ring ends at its capacity ({capacity('classic')} members with the classic presets, {capacity('default'):,} with `default`):",
        "",
        "| | " + " | ".join(f"N = {size:,}" for size in sizes) + " |",
        "|---" * (1 + len(sizes)) + "|",
    ]
    for what in dict.fromkeys(row["what"] for row in result["choices"]):
        picks = {row["size"]: row["pick"] for row in result["choices"] if row["what"] == what}
        cells = [f"{picks[size] * 1e6:,.2f}" if size in picks else "—" for size in sizes]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    lines += [
        "",
        "To build a ring from nothing, and to take one member out of it, in ms:",
        "",
        "| | " + " | ".join(f"N = {size:,}" for size in sizes if size <= capacity("default")) + " |",
    ]
    lines.append("|---" * (1 + sum(size <= capacity("default") for size in sizes)) + "|")
    for name in PRESETS:
        cells = []
        for size in sizes:
            if size > capacity("default"):
                continue
            row = next(
                (r for r in result["choices"] if r["what"] == f"ring {name}" and r["size"] == size), None
            )
            change = f"{row['change'] * 1e3:.1f}" if row and row["change"] is not None else "—"
            cells.append(f"{row['build'] * 1e3:.1f}, {change}" if row else "—")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _backends(result: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["backend"] for row in result["changes"]))
