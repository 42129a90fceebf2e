"""A-3: every endpoint once; then a replica is killed under load, and what can be seen of it is drawn."""

import asyncio
import time
from typing import Any

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
    """Call the endpoints, then load, kill and watch."""
    seconds, killed_after = (3.0, 1.0) if context.quick else (SECONDS, KILLED_AFTER)
    async with running(context.backend, REPLICAS) as system:
        calls = [await _call(system, *call) for call in CALLS]
        seen: list[tuple[float, dict[str, Any]]] = []
        watching = asyncio.create_task(_watch(system, seen))
        target = Target.parse(system.url("/home"))
        load = Load(round(RATE * seconds), concurrency=500, rate=RATE, seed=context.seed)
        with context.bar("a replica is killed under load", load.requests) as bar:
            sending = asyncio.create_task(send(target, load, progress=bar.at))
            await asyncio.sleep(killed_after)
            (victim, *_) = await system.replicas()
            killed = time.perf_counter()
            await system.kill(victim)
            record = await sending
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    story = [
        {"at": at - killed, "event": event["event"]}
        for at, event in seen
        if event.get("replica") == victim["hostname"]
    ]
    moments = {
        name: next((e["at"] for e in story if e["event"] == name), None)
        for name in ("down", "starting", "up")
    }
    return {
        "calls": calls,
        "rate": RATE,
        "victim": victim["hostname"],
        "killed_at": killed - record.origin,
        "moments": moments,
        "summary": record.summary(),
        "timeline": record.over_time(STEP)[:-1],  # the last step is not a whole one
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


async def _watch(system: System, seen: list[tuple[float, dict[str, Any]]]) -> None:
    async for at, event in events(system):
        seen.append((at, event))


def draw(result: dict[str, Any]) -> dict[str, Figure]:
    """Throughput, errors, slowest answer and replicas up, over time."""
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
    ends = [times[0], 0.0, times[-1]]
    up = [REPLICAS, REPLICAS, REPLICAS]
    if moments["down"] is not None:
        ends, up = [times[0], moments["down"]], [REPLICAS, REPLICAS - 1]
        if moments["up"] is not None:
            ends, up = [*ends, moments["up"]], [*up, REPLICAS]
        ends, up = [*ends, times[-1]], [*up, up[-1]]
    below.step(ends, up, where="post", color="C3")
    below.set_title("Replicas in rotation")
    below.set_ylim(0, REPLICAS + 0.5)
    below.set_xlabel("seconds after the kill")
    for place in (above, middle, below):
        place.axvline(0, color="black", linewidth=1)
        for name, colour in (("down", "C1"), ("starting", "C4"), ("up", "C2")):
            if moments[name] is not None:
                place.axvline(moments[name], color=colour, linewidth=1, linestyle="--")
    labels = [("killed", 0.0)] + [
        (name, moments[key])
        for name, key in (("detected", "down"), ("replacement started", "starting"), ("full service", "up"))
    ]
    for row, (name, at) in enumerate(labels):
        if at is not None:
            below.annotate(
                f"{name} {at:.2f} s" if row else name,
                (at, 0.15 + 0.55 * row),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=8,
            )
    return {"a3": figure}


def tell(result: dict[str, Any]) -> str:
    """The moments, and the table of endpoints."""
    moments, summary = result["moments"], result["summary"]
    said = {name: "never" if at is None else f"{at * 1000:,.0f} ms" for name, at in moments.items()}
    lines = [
        f"{summary['requests']:,} requests in an open loop, {result['rate']:g} a second; {result['victim']} is sent SIGKILL after "
        f"{result['killed_at']:.1f} s. It is off the ring **{said['down']}** after the kill, its replacement is being started "
        f"after {said['starting']}, and full service is restored after **{said['up']}**. "
        f"**{summary['failed']:,} requests failed**; the slowest answer took {summary['max'] * 1000:,.0f} ms, the median "
        f"{summary['percentiles']['50'] * 1000:.1f} ms.",
        "",
        "| call | status | answer | ms |",
        "|---|---|---|---|",
    ]
    for call in result["calls"]:
        answer = call["answer"].replace("|", "\\|").strip()
        shown = f"`{answer}`" if answer else "—"
        lines.append(f"| `{call['call']}` | {call['status']} | {shown} | {call['seconds'] * 1000:,.0f} |")
    return "\n".join(lines)
