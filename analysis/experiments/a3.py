"""A-3: one call of every endpoint; then the death of a replica under load, and the recovery from it."""

import asyncio
import time
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import plots
from analysis.context import Context
from analysis.load.generator import Load, Target
from analysis.load.generator import run as send
from analysis.system import System, events, running

TITLE = "A-3: a replica is killed under load"

REPLICAS = 3
RATE = 200.0
SECONDS, KILLED_AFTER = 10.0, 3.0
STEP = 0.1
"""Seconds that one point of the plots covers."""

CALLS = (
    ("GET", "/rep", None),
    ("GET", "/home", None),
    ("GET", "/heartbeat", None),
    ("GET", "/other", None),
    ("POST", "/add", {"n": 2, "hostnames": ["S5"]}),
    ("POST", "/add", {"n": 1, "hostnames": ["a", "b"]}),
    ("DELETE", "/rm", {"n": 2, "hostnames": ["S5"]}),
    ("DELETE", "/rm", {"n": 1, "hostnames": ["nobody"]}),
    ("GET", "/lb/health", None),
)


async def run(context: Context) -> dict[str, Any]:
    """Call the endpoints; then send the load, kill a replica and record its events."""
    seconds, killed_after = (3.0, 1.0) if context.quick else (SECONDS, KILLED_AFTER)
    async with running(context.backend, REPLICAS) as system:
        calls = [await _call(system, *call) for call in CALLS]
        recorded: list[tuple[float, dict[str, Any]]] = []
        recording = asyncio.create_task(_record_events(system, recorded))
        target = Target.parse(system.url("/home"))
        load = Load(round(RATE * seconds), concurrency=500, rate=RATE, seed=context.seed)
        with context.bar("a replica is killed under load", load.requests) as bar:
            sending = asyncio.create_task(send(target, load, progress=bar.at))
            await asyncio.sleep(killed_after)
            (victim, *_) = await system.replicas()
            killed = time.perf_counter()
            await system.kill(victim)
            record = await sending
        recording.cancel()
        await asyncio.gather(recording, return_exceptions=True)
    of_victim = [(at - killed, event) for at, event in recorded if event.get("replica") == victim["hostname"]]
    moments = {
        name: next((at for at, event in of_victim if event["event"] == name), None)
        for name in ("down", "starting", "up")
    }
    return {
        "calls": calls,
        "rate": RATE,
        "victim": victim["hostname"],
        "killed_at": killed - record.origin,
        "moments": moments,
        "summary": record.summary(),
        "timeline": record.over_time(STEP)[:-1],  # the last step is shorter than the others
    }


async def _call(system: System, method: str, path: str, body: Any) -> dict[str, Any]:
    began = time.perf_counter()
    async with system.session.request(method, system.url(path), json=body) as answer:
        text = await answer.text()
        return {
            "call": f"{method} {path}",
            "body": body,
            "status": answer.status,
            "answer": text,
            "seconds": time.perf_counter() - began,
        }


async def _record_events(system: System, recorded: list[tuple[float, dict[str, Any]]]) -> None:
    async for at, event in events(system):
        recorded.append((at, event))


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    """Draw throughput, failures, the slowest answer and the replicas in rotation over time."""
    figure, (above, middle, below) = plots.panels(3, 1, "A replica is killed under load", height=1.9)
    timeline, killed, moments = result["timeline"], result["killed_at"], result["moments"]
    times = [bucket["at"] - killed for bucket in timeline]
    above.step(times, [bucket["answered"] / STEP for bucket in timeline], where="post", label="answered")
    above.step(times, [bucket["failed"] / STEP for bucket in timeline], where="post", label="failed")
    above.set_title("Requests a second")
    above.legend(loc="lower left", ncols=2)
    middle.step(times, [bucket["slowest"] * 1000 for bucket in timeline], where="post", color="C2")
    middle.set_title("Slowest answer, ms")
    middle.set_ylim(bottom=0)
    below.step(*_in_rotation(moments, times[0], times[-1]), where="post", color="C3")
    below.set_title("Replicas in rotation")
    below.set_ylim(0, REPLICAS + 0.5)
    below.set_xlabel("seconds after the kill")
    for place in (above, middle, below):
        place.axvline(0, color="black", linewidth=1)
        for name, colour in (("down", "C1"), ("starting", "C4"), ("up", "C2")):
            if moments[name] is not None:
                place.axvline(moments[name], color=colour, linewidth=1, linestyle="--")
    _annotate(below, moments)
    return {"a3": figure}


def _in_rotation(moments: dict[str, Any], begin: float, end: float) -> tuple[list[float], list[int]]:
    """The times at which the number of replicas in rotation changes, and the numbers from then on."""
    times, numbers = [begin], [REPLICAS]
    if moments["down"] is not None:
        times.append(moments["down"])
        numbers.append(REPLICAS - 1)
        if moments["up"] is not None:
            times.append(moments["up"])
            numbers.append(REPLICAS)
    return [*times, end], [*numbers, numbers[-1]]


def _annotate(axes: Axes, moments: dict[str, Any]) -> None:
    """Write the name and the time of each moment beside its line."""
    labels = [("killed", 0.0)] + [
        (name, moments[key])
        for name, key in (("detected", "down"), ("replacement started", "starting"), ("full service", "up"))
    ]
    for row, (name, at) in enumerate(labels):
        if at is not None:
            axes.annotate(
                f"{name} {at:.2f} s" if row else name,
                (at, 0.15 + 0.55 * row),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=8,
            )


def tell(result: dict[str, Any]) -> str:
    """Describe the recovery in a paragraph, and the calls of the endpoints in a table."""
    moments, summary = result["moments"], result["summary"]
    said = {name: "never" if at is None else f"{at * 1000:,.0f} ms" for name, at in moments.items()}
    lines = [
        f"Load: {summary['requests']:,} requests in an open loop, {result['rate']:g} a second. {result['victim']} gets SIGKILL "
        f"{result['killed_at']:.1f} s after the start. Times after the kill: {result['victim']} is off the ring after "
        f"**{said['down']}**, the start of its replacement begins after {said['starting']}, and all {REPLICAS} replicas are in "
        f"rotation again after **{said['up']}**. **{summary['failed']:,} requests failed.** The slowest answer took "
        f"{summary['max'] * 1000:,.0f} ms, the median answer {summary['percentiles']['50'] * 1000:.1f} ms.",
        "",
        "| call | status | answer | ms |",
        "|---|---|---|---|",
    ]
    for call in result["calls"]:
        answer = call["answer"].replace("|", "\\|").strip()
        shown = f"`{answer}`" if answer else "—"
        lines.append(f"| `{call['call']}` | {call['status']} | {shown} | {call['seconds'] * 1000:,.0f} |")
    return "\n".join(lines)
