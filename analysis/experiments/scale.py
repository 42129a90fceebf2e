"""Scale: the duration of `/add` and `/rm`, and the cost of rings and policies, as the number of replicas grows."""

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

TITLE = "Scale: duration of changes, and cost of a pick"

STEPS: dict[Backend, tuple[int, ...]] = {"process": tuple(range(1, 21)), "docker": (1, 2, 4, 8, 12, 16, 20)}
"""Numbers of replicas that one change adds or removes. Containers start slowly, so they get fewer steps."""

POLICIES = ("round-robin", "weighted-round-robin", "random", "least-connections", "power-of-two")

SIZES: tuple[int, ...] = (1, 3, 10, 30, 56, 100, 128, 300, 1_000, 3_000, 10_000)

LOOKUPS = 20_000
"""Picks that one measurement times."""


def engine_answers() -> bool:
    """Whether a Docker Engine answers and has the image of the sample replica."""
    if shutil.which("docker") is None:
        return False
    image = ["docker", "image", "inspect", "loadbalancer-server:latest"]
    try:
        return subprocess.run(image, capture_output=True, timeout=20).returncode == 0
    except subprocess.TimeoutExpired:
        return False


async def run(context: Context) -> dict[str, Any]:
    """Time changes of a real fleet, then rings and policies without one."""
    backends: list[Backend] = ["process"]
    if context.backend == "docker" or (engine_answers() and not context.quick):
        backends.append("docker")
    changes = [row for backend in backends for row in await _changes(context, backend)]
    sizes = SIZES[:3] if context.quick else SIZES
    with context.bar("rings and policies", len(sizes)) as bar:
        picks = []
        for done, size in enumerate(sizes, 1):
            picks += _rings(size) + _policies(size)
            bar.at(done)
    return {"changes": changes, "picks": picks, "docker": "docker" in backends}


async def _changes(context: Context, backend: Backend) -> list[dict[str, Any]]:
    """Time `/add` and `/rm` of one replica, of several, and of many."""
    steps = (1, 2) if context.quick else STEPS[backend]
    rows = []
    async with running(backend, 1) as system:
        with context.bar(f"/add and /rm ({backend})", len(steps)) as bar:
            for done, n in enumerate(steps, 1):
                body = {"n": n, "hostnames": [f"extra-{number}" for number in range(n)]}
                added = await system.change("POST", "/add", body)
                removed = await system.change("DELETE", "/rm", body)
                rows.append({"backend": backend, "n": n, "add": added, "rm": removed})
                bar.at(done)
    return rows


def _rings(size: int) -> list[dict[str, Any]]:
    """Time every ring that has room for so many members, and bounded loads on the ring `default`."""
    upstreams = _upstreams(size)
    keys = [str(number) for number in range(LOOKUPS)]
    rows: list[dict[str, Any]] = []
    for name in PRESETS:
        if size > capacity(name):
            continue
        build = _seconds(lambda name=name: Ring.build(name, range(1, size + 1)))  # type: ignore[misc]
        ring = Ring.build(name, range(1, size + 1))
        leave = _seconds(lambda ring=ring: ring.changed_to(range(2, size + 1))) if size > 1 else None  # type: ignore[misc]
        pick = _each(keys, ring.owner)
        rows.append({"name": f"ring {name}", "size": size, "build": build, "change": leave, "pick": pick})
        if name == "default":
            hashing = make_policy("consistent-hash", upstreams, ring=ring, load_factor=1.25, rng=Random(1))
            for upstream in upstreams:
                upstream.add_in_flight(2)
            rows.append({"name": "consistent-hash, bounded", "size": size, "pick": _each(keys, hashing.pick)})
    return rows


def _policies(size: int) -> list[dict[str, Any]]:
    """Time the policies that have no ring, with so many replicas."""
    upstreams = _upstreams(size)
    empty = Ring.build("default", ())
    keys = [str(number) for number in range(max(LOOKUPS * 10 // max(size, 10), 50))]
    rows = []
    for policy in POLICIES:
        chooser = make_policy(policy, upstreams, ring=empty, load_factor=0, rng=Random(1))
        rows.append({"name": policy, "size": size, "pick": _each(keys, chooser.pick)})
    return rows


def _upstreams(size: int) -> list[Upstream]:
    return [Upstream(f"Server-{n}", n, "127.0.0.1", n) for n in range(1, size + 1)]


def _seconds(work: Callable[[], object]) -> float:
    """The shortest of three runs, in seconds."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def _each(keys: list[str], pick: Callable[[str], object]) -> float:
    """Seconds of one pick: the mean over all keys."""

    def pick_all() -> None:
        for key in keys:
            pick(key)

    return _seconds(pick_all) / len(keys)


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    """Draw the duration of changes, and the cost of a pick."""
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
    left.set_title("Seconds until /add or /rm of n replicas answers")
    left.set_xlabel("n")
    left.set_ylim(bottom=0)
    left.legend(fontsize=8)
    for name in dict.fromkeys(row["name"] for row in result["picks"]):
        rows = [row for row in result["picks"] if row["name"] == name]
        right.plot(
            [row["size"] for row in rows],
            [row["pick"] * 1e6 for row in rows],
            marker=".",
            label=name,
            linestyle="--" if name.startswith("ring") else "-",
        )
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_title("µs for a pick")
    right.set_xlabel("N")
    figure.legend(*right.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4)
    return {"scale": figure}


def tell(result: dict[str, Any]) -> str:
    """Describe the changes, the picks and the rings, in a table each."""
    return "\n".join([*_table_of_changes(result), "", *_table_of_picks(result), "", *_table_of_rings(result)])


def _table_of_changes(result: dict[str, Any]) -> list[str]:
    backends = list(dict.fromkeys(row["backend"] for row in result["changes"]))
    by_size: dict[int, dict[str, dict[str, Any]]] = {}
    for row in result["changes"]:
        by_size.setdefault(row["n"], {})[row["backend"]] = row
    lines = [
        "Seconds until `/add` and `/rm` of n replicas answer. The cores of the machine limit `/add`, because each replica "
        "is a new interpreter. A dash: not measured."
        + (
            ""
            if result["docker"]
            else " Containers were not timed: no Docker Engine with the sample image answered."
        ),
        "",
        "| n | " + " | ".join(f"/add, {backend}, s | /rm, {backend}, s" for backend in backends) + " |",
        "|---" * (1 + 2 * len(backends)) + "|",
    ]
    for n, rows in by_size.items():
        cells = [f"{rows[b]['add']:.2f} | {rows[b]['rm']:.2f}" if b in rows else "— | —" for b in backends]
        lines.append(f"| {n} | {' | '.join(cells)} |")
    return lines


def _table_of_picks(result: dict[str, Any]) -> list[str]:
    lines = [
        "µs that one pick takes on one core with N replicas. A dash: the ring has no room for so many replicas.",
        "",
        *_head(_sizes(result["picks"])),
    ]
    for name in dict.fromkeys(row["name"] for row in result["picks"]):
        picks = {row["size"]: row["pick"] for row in result["picks"] if row["name"] == name}
        cells = [f"{picks[size] * 1e6:,.2f}" if size in picks else "—" for size in _sizes(result["picks"])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _table_of_rings(result: dict[str, Any]) -> list[str]:
    rings = [row for row in result["picks"] if "build" in row]
    lines = [
        "Milliseconds to build a ring of N replicas, and, after the comma, to make the ring without one of them.",
        "",
        *_head(_sizes(rings)),
    ]
    for name in dict.fromkeys(row["name"] for row in rings):
        by_size = {row["size"]: row for row in rings if row["name"] == name}
        cells = [_ring_cell(by_size.get(size)) for size in _sizes(rings)]
        lines.append(f"| {name.removeprefix('ring ')} | {' | '.join(cells)} |")
    return lines


def _ring_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "—"
    change = "—" if row["change"] is None else f"{row['change'] * 1e3:.1f}"
    return f"{row['build'] * 1e3:.1f}, {change}"


def _sizes(rows: list[dict[str, Any]]) -> list[int]:
    return sorted({row["size"] for row in rows})


def _head(sizes: list[int]) -> list[str]:
    return ["| | " + " | ".join(f"N = {size:,}" for size in sizes) + " |", "|---" * (1 + len(sizes)) + "|"]
