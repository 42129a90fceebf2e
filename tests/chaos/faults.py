"""The faults: each breaks a part of a system under load, and measures failed requests and recovery."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.chaos.engine import BreakableEngine
from tests.chaos.load import Load
from tests.harness import LoadBalancer, eventually

RATE = 100.0
"""Requests a second: high enough for requests in flight at each moment, low enough for two shared cores."""

CALM = 1.0
"""Seconds of load before the fault, and after the recovery."""


@dataclass
class Outcome:
    """The effect of one fault.

    Args:
        requests: Number of requests by outcome: a status, or the name of an error.
        failed: The same for the requests that failed although the load balancer should have saved them.
        recovery: Seconds from the fault until all replicas are in rotation again; None: no replica was lost.
    """

    requests: Counter[str]
    failed: Counter[str] = field(default_factory=Counter)
    recovery: float | None = None


@dataclass
class System:
    """A running load balancer, and the means to break its replicas and its engine.

    Args:
        lb: The load balancer.
        kill: Kills a replica, given its entry in `/lb/replicas`.
        freeze: Stops a replica as SIGSTOP does, given the same.
        engine: Proxy between the load balancer and the engine; None: replicas are processes.
    """

    lb: LoadBalancer
    kill: Callable[[dict[str, Any]], Awaitable[None]]
    freeze: Callable[[dict[str, Any]], Awaitable[None]]
    engine: BreakableEngine | None = None

    def load(self) -> Load:
        """A load on the load balancer, at the rate of all faults."""
        return Load(f"http://127.0.0.1:{self.lb.port}/home", RATE)

    async def state(self) -> dict[str, dict[str, Any]]:
        """`/lb/replicas`, by hostname."""
        return await asyncio.to_thread(self.lb.state)

    async def until(self, event: str, after: int, count: int = 1, **fields: Any) -> float:
        """Wait for an event in the log, and return its time in seconds since the epoch."""
        record = await asyncio.to_thread(self.lb.wait_for, event, count, after, **fields)
        return datetime.fromisoformat(record["timestamp"]).timestamp()

    async def change(self, method: str, path: str, **body: Any) -> None:
        """Call `/add` or `/rm`, which must succeed."""
        reply = await asyncio.to_thread(self.lb.call, method, path, body)
        assert reply.status == 200, reply.body


Fault = Callable[[System], Coroutine[Any, Any, Outcome]]
"""Breaks a part of a system under load, and returns the effect."""


def failures(outcomes: Counter[str]) -> Counter[str]:
    """The outcomes other than 200."""
    return Counter({outcome: count for outcome, count in outcomes.items() if outcome != "200"})


async def calm() -> None:
    """Let the load run without a fault."""
    await asyncio.sleep(CALM)


async def kill_one(system: System) -> Outcome:
    """Kill a replica."""
    async with system.load() as load:
        await calm()
        victim = (await system.state())["Server-2"]
        mark, begun = system.lb.mark(), time.time()
        await system.kill(victim)
        up = await system.until("replica up", mark, replica="Server-2")
        await calm()
    return Outcome(load.outcomes(), failures(load.outcomes()), up - begun)


async def freeze_one(system: System) -> Outcome:
    """Stop a replica: it accepts connections and never answers. A 504 before the detection is allowed."""
    async with system.load() as load:
        await calm()
        victim = (await system.state())["Server-3"]
        mark, begun = system.lb.mark(), time.time()
        await system.freeze(victim)
        down = await system.until("replica down", mark, replica="Server-3")
        up = await system.until("replica up", mark, replica="Server-3")
        await calm()
    failed = failures(load.outcomes(since=down))
    failed.update({k: n for k, n in failures(load.outcomes(until=down)).items() if k != "504"})
    return Outcome(load.outcomes(), failed, up - begun)


async def remove_busy(system: System) -> Outcome:
    """Remove a replica that has slow requests in flight."""
    await system.change("POST", "/add", n=1, hostnames=["busy"])
    slow = f"http://127.0.0.1:{system.lb.port}/slow?seconds=1.5"
    async with system.load() as load, Load(slow, 20.0) as slow_load:
        await calm()
        await system.change("DELETE", "/rm", n=1, hostnames=["busy"])
        await calm()
    both = load.outcomes() + slow_load.outcomes()
    return Outcome(both, failures(both))


async def add_and_remove(system: System, times: int = 50) -> Outcome:
    """Add a replica and remove it again, many times."""
    async with system.load() as load:
        for turn in range(times):
            await system.change("POST", "/add", n=1, hostnames=[f"turn-{turn}"])
            await system.change("DELETE", "/rm", n=1, hostnames=[f"turn-{turn}"])
    return Outcome(load.outcomes(), failures(load.outcomes()))


async def kill_all(system: System) -> Outcome:
    """Kill all replicas at once."""
    async with system.load() as load:
        await calm()
        victims = await system.state()
        mark, begun = system.lb.mark(), time.time()
        await asyncio.gather(*map(system.kill, victims.values()))
        up = [await system.until("replica up", mark, replica=name) for name in victims]
        await calm()
    first, last = min(up) - begun, max(up) - begun
    failed = failures(load.outcomes())
    if first > 2.0:  # longer than --queue-timeout, so a 503 is allowed
        del failed["503"]
    return Outcome(load.outcomes(), failed, last)


async def kill_balancer(system: System) -> Outcome:
    """Kill the load balancer and start it again; its containers continue to run."""
    async with system.load() as load:
        await calm()
        before = {name: (one["id"], one["number"]) for name, one in (await system.state()).items()}
        begun = time.time()
        await asyncio.to_thread(system.lb.kill)
        await asyncio.to_thread(system.lb.start)
        back = time.time()
        after = {name: (one["id"], one["number"]) for name, one in (await system.state()).items()}
        assert after == before, "the new load balancer adopts the same fleet"
        await calm()
    # The kernel refuses requests while no process listens; requests in flight are lost with the process.
    failed = failures(load.outcomes(until=begun - 0.1)) + failures(load.outcomes(since=back))
    return Outcome(load.outcomes(), failed, back - begun)


async def engine_away(system: System, seconds: float = 10.0) -> Outcome:
    """Make the engine unreachable for a while, and kill a replica meanwhile."""
    assert system.engine is not None
    async with system.load() as load:
        await calm()
        victim = (await system.state())["Server-1"]
        mark = system.lb.mark()
        system.engine.cut()
        await system.kill(victim)
        await asyncio.sleep(seconds)
        begun = time.time()
        system.engine.open = True
        up = await system.until("replica up", mark, replica="Server-1")
        await calm()
    return Outcome(load.outcomes(), failures(load.outcomes()), up - begun)


def restart_engine(command: str) -> Fault:
    """Make a fault that restarts the engine.

    With `live-restore` in the engine's configuration its containers continue to run. Without it they end, and
    requests wait or get a 503, which is allowed.

    Args:
        command: Shell command that restarts the engine, and returns when the engine answers again.
    """

    async def fault(system: System) -> Outcome:
        async with system.load() as load:
            await calm()
            restarting = await asyncio.create_subprocess_shell(command)
            await restarting.wait()
            begun = time.time()

            def all_up() -> bool:
                return [one["state"] for one in system.lb.state().values()] == ["up"] * 3

            await asyncio.to_thread(eventually, all_up, "all replicas are up again")
            recovery = time.time() - begun
            await calm()
        failed = failures(load.outcomes())
        del failed["503"]
        return Outcome(load.outcomes(), failed, recovery)

    return fault


async def nothing(system: System) -> Outcome:
    """Inject no fault, for comparison."""
    async with system.load() as load:
        await asyncio.sleep(5 * CALM)
    return Outcome(load.outcomes(), failures(load.outcomes()))


FAULTS: dict[str, Fault] = {
    "none": nothing,
    "SIGKILL of a replica": kill_one,
    "SIGSTOP of a replica": freeze_one,
    "/rm of a replica with slow requests in flight": remove_busy,
    "/add and /rm in turn, 50 times": add_and_remove,
    "SIGKILL of all replicas at once": kill_all,
    "SIGKILL and restart of the load balancer": kill_balancer,
    "engine unreachable for 10 s, SIGKILL of a replica meanwhile": engine_away,
}


DOCKER_ONLY = ("SIGKILL and restart of the load balancer", "engine")
"""Prefixes of the faults that need containers. Replicas that are processes end with their load balancer."""


async def kill_process(replica: dict[str, Any]) -> None:
    os.kill(int(replica["id"]), signal.SIGKILL)


async def freeze_process(replica: dict[str, Any]) -> None:
    os.kill(int(replica["id"]), signal.SIGSTOP)


async def docker(*args: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "docker", *args, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, error = await process.communicate()
    assert process.returncode == 0, error.decode()


async def kill_container(replica: dict[str, Any]) -> None:
    await docker("kill", replica["id"])


async def freeze_container(replica: dict[str, Any]) -> None:
    await docker("pause", replica["id"])
