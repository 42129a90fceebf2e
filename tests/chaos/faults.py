"""The faults: each breaks something under load and says what clients noticed and how long it lasted."""

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
"""Requests a second: enough that each moment has some in flight, few enough for two shared cores."""

CALM = 1.0
"""Seconds of load before a fault and after the recovery."""


@dataclass
class Outcome:
    """What one fault did.

    Args:
        requests: Outcomes of all requests.
        failed: Outcomes of those that were failed and should not have been.
        recovery: Seconds from the fault until the fleet was whole again; None where nothing is to recover.
    """

    requests: Counter[str]
    failed: Counter[str] = field(default_factory=Counter)
    recovery: float | None = None


@dataclass
class System:
    """A running load balancer and the means to hurt its replicas.

    Args:
        lb: The load balancer.
        kill: Kills a replica, given what `/lb/replicas` says of it.
        freeze: Stops it as SIGSTOP does.
        road: How the load balancer reaches the engine, where it can be cut.
    """

    lb: LoadBalancer
    kill: Callable[[dict[str, Any]], Awaitable[None]]
    freeze: Callable[[dict[str, Any]], Awaitable[None]]
    road: BreakableEngine | None = None

    def load(self) -> Load:
        return Load(f"http://127.0.0.1:{self.lb.port}/home", RATE)

    async def state(self) -> dict[str, dict[str, Any]]:
        return await asyncio.to_thread(self.lb.state)

    async def until(self, event: str, after: int, count: int = 1, **fields: Any) -> float:
        """When an event has happened, in seconds since the epoch."""
        record = await asyncio.to_thread(self.lb.wait_for, event, count, after, **fields)
        return datetime.fromisoformat(record["timestamp"]).timestamp()

    async def change(self, method: str, path: str, **body: Any) -> None:
        reply = await asyncio.to_thread(self.lb.call, method, path, body)
        assert reply.status == 200, reply.body


Fault = Callable[[System], Coroutine[Any, Any, Outcome]]


def failures(outcomes: Counter[str]) -> Counter[str]:
    return Counter({outcome: count for outcome, count in outcomes.items() if outcome != "200"})


async def calm() -> None:
    await asyncio.sleep(CALM)


async def kill_one(system: System) -> Outcome:
    """SIGKILL of a replica."""
    async with system.load() as load:
        await calm()
        victim = (await system.state())["Server-2"]
        mark, begun = system.lb.mark(), time.time()
        await system.kill(victim)
        up = await system.until("replica up", mark, replica="Server-2")
        await calm()
    return Outcome(load.outcomes(), failures(load.outcomes()), up - begun)


async def freeze_one(system: System) -> Outcome:
    """SIGSTOP of a replica: it accepts connections and never answers."""
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
    """`/rm` of a replica with slow requests in flight."""
    await system.change("POST", "/add", n=1, hostnames=["busy"])
    slow = f"http://127.0.0.1:{system.lb.port}/slow?seconds=1.5"
    async with system.load() as load, Load(slow, 20.0) as slow_load:
        await calm()
        await system.change("DELETE", "/rm", n=1, hostnames=["busy"])
        await calm()
    both = load.outcomes() + slow_load.outcomes()
    return Outcome(both, failures(both))


async def add_and_remove(system: System, times: int = 50) -> Outcome:
    """`/add` and `/rm` in turn."""
    async with system.load() as load:
        for turn in range(times):
            await system.change("POST", "/add", n=1, hostnames=[f"turn-{turn}"])
            await system.change("DELETE", "/rm", n=1, hostnames=[f"turn-{turn}"])
    return Outcome(load.outcomes(), failures(load.outcomes()))


async def kill_all(system: System) -> Outcome:
    """All replicas killed at once."""
    async with system.load() as load:
        await calm()
        victims = await system.state()
        mark, begun = system.lb.mark(), time.time()
        await asyncio.gather(*map(system.kill, victims.values()))
        up = [await system.until("replica up", mark, replica=name) for name in victims]
        await calm()
    first, last = min(up) - begun, max(up) - begun
    failed = failures(load.outcomes())
    if first > 2.0:  # longer than --queue-timeout: those who have waited for that long get a 503
        del failed["503"]
    return Outcome(load.outcomes(), failed, last)


async def kill_balancer(system: System) -> Outcome:
    """SIGKILL of the load balancer, and a new start: its containers live on."""
    async with system.load() as load:
        await calm()
        before = {name: (one["id"], one["number"]) for name, one in (await system.state()).items()}
        begun = time.time()
        await asyncio.to_thread(system.lb.kill)
        await asyncio.to_thread(system.lb.start)
        back = time.time()
        after = {name: (one["id"], one["number"]) for name, one in (await system.state()).items()}
        assert after == before, "the same fleet"
        await calm()
    # What is sent while nobody listens is refused, and what was in flight is lost with the process.
    failed = failures(load.outcomes(until=begun - 0.1)) + failures(load.outcomes(since=back))
    return Outcome(load.outcomes(), failed, back - begun)


async def engine_away(system: System, seconds: float = 10.0) -> Outcome:
    """The engine cannot be reached for a while, in which a replica is killed."""
    assert system.road is not None
    async with system.load() as load:
        await calm()
        victim = (await system.state())["Server-1"]
        mark = system.lb.mark()
        system.road.cut()
        await system.kill(victim)
        await asyncio.sleep(seconds)
        begun = time.time()
        system.road.open = True
        up = await system.until("replica up", mark, replica="Server-1")
        await calm()
    return Outcome(load.outcomes(), failures(load.outcomes()), up - begun)


def restart_engine(command: str) -> Fault:
    """The engine is restarted by a command, which returns when it answers again.

    Its containers live on where it has `live-restore`, and are gone where it has not: then requests wait, or
    get a 503.
    """

    async def fault(system: System) -> Outcome:
        async with system.load() as load:
            await calm()
            restarting = await asyncio.create_subprocess_shell(command)
            await restarting.wait()
            begun = time.time()

            def whole() -> bool:
                return [one["state"] for one in system.lb.state().values()] == ["up"] * 3

            await asyncio.to_thread(eventually, whole, "the fleet is whole again")
            recovery = time.time() - begun
            await calm()
        failed = failures(load.outcomes())
        del failed["503"]
        return Outcome(load.outcomes(), failed, recovery)

    return fault


async def nothing(system: System) -> Outcome:
    """No fault at all, for comparison."""
    async with system.load() as load:
        await asyncio.sleep(5 * CALM)
    return Outcome(load.outcomes(), failures(load.outcomes()))


FAULTS: dict[str, Fault] = {
    "none": nothing,
    "SIGKILL of a replica": kill_one,
    "SIGSTOP of a replica": freeze_one,
    "/rm of a replica with slow requests in flight": remove_busy,
    "/add and /rm in turn, 50 times": add_and_remove,
    "all replicas killed at once": kill_all,
    "SIGKILL of the load balancer, restart": kill_balancer,
    "engine away for 10 s, a replica killed meanwhile": engine_away,
}


DOCKER_ONLY = ("SIGKILL of the load balancer, restart", "engine")
"""How the names of faults begin that are none for processes: these end with their load balancer."""


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
