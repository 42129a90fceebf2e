"""Replicas that are killed one after the other under load, and what clients notice of it."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from analysis.bench.traffic import request
from analysis.load.generator import Load, Target, run
from analysis.system import System, running

CLIENTS = 16
"""Each sends its next request when it has the answer to the last."""

REPLICAS = 3

REPLICAS_ARE: dict[str, tuple[str, ...]] = {
    "the sample replica": (),
    "a fast one": ("--command", "python -m analysis.bench.bulk_replica", "--heartbeat-path", "/"),
}
"""By what a table calls them: the options of `serve` that start them."""

BATCH = 2_000
"""Requests after which the clients look whether all kills are done; they connect anew for each batch."""

REPLACED_WITHIN = 60.0
"""Seconds for a killed replica to be replaced."""


@dataclass
class Outcome:
    """What clients noticed.

    Args:
        kills: Replicas that were killed.
        requests: That were sent, all of which may be repeated.
        seconds: That it took.
        errors: Requests that failed, by kind.
    """

    kills: int = 0
    requests: int = 0
    seconds: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)


async def kills(count: int, options: Sequence[str], told: Callable[[str], None]) -> Outcome:
    """Kill replicas at random under a closed loop, each when the last one has been replaced.

    Args:
        count: How many.
        options: Of `serve`.
        told: Told of each kill.
    """
    outcome = Outcome()
    async with running("process", REPLICAS, options) as system:
        killing = asyncio.create_task(_kill(system, count, outcome, told))
        target = Target.parse(system.url("/home"))
        while not killing.done():
            record = await run(target, Load(BATCH, CLIENTS, together=True), _varied(system, outcome.requests))
            outcome.requests += len(record.status)
            outcome.seconds += record.took
            outcome.errors += record.errors
        await killing
    return outcome


def _varied(system: System, first: int) -> Callable[[int], bytes]:
    """Makes the requests of a batch: the sample replica knows one path, so that the rest differs."""
    host = f"127.0.0.1:{system.port}"
    return lambda number: request(first + number, host, "/home")


async def _kill(system: System, count: int, outcome: Outcome, told: Callable[[str], None]) -> None:
    for _ in range(count):
        victim = random.choice(await system.replicas())
        await system.kill(victim)
        outcome.kills += 1
        async with asyncio.timeout(REPLACED_WITHIN):
            while True:
                if _replaced(await system.replicas(), victim["id"]):
                    break
                await asyncio.sleep(0.05)
        told(f"kill {outcome.kills}: {victim['hostname']}")


def _replaced(present: list[dict[str, str]], victim: str) -> bool:
    """Whether all are up, and the one that was killed is none of them."""
    return all(replica["state"] == "up" and replica["id"] != victim for replica in present)
