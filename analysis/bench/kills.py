"""Kills replicas one after the other under load, and counts the requests that fail."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from analysis.bench.traffic import request
from analysis.load.generator import Load, Target, run
from analysis.system import System, running

CLIENTS = 16
"""Clients of a closed loop: each sends its next request after the answer to the last."""

REPLICAS = 3

KINDS_OF_REPLICA: dict[str, tuple[str, ...]] = {
    "the sample replica": (),
    "a minimal replica": ("--command", "python -m analysis.bench.bulk_replica", "--heartbeat-path", "/"),
}
"""Options of `serve` that start the replicas, by the name of the replica in the table."""

BATCH = 2_000
"""Requests of one batch. The load ends at the end of a batch; each batch has new connections."""

REPLACED_WITHIN = 60.0
"""Longest time until a killed replica is replaced, in seconds."""


@dataclass
class Outcome:
    """The figures of one run.

    Args:
        kills: Number of replicas that were killed.
        requests: Number of requests; all are idempotent.
        seconds: Duration of the run.
        errors: Failed requests by kind of failure.
    """

    kills: int = 0
    requests: int = 0
    seconds: float = 0.0
    errors: Counter[str] = field(default_factory=Counter)


async def kills(count: int, options: Sequence[str], log: Callable[[str], None]) -> Outcome:
    """Kill random replicas under a closed loop, each after the last one has been replaced.

    Args:
        count: Number of kills.
        options: Further options of `serve`.
        log: Called with a line of text after each kill.
    """
    outcome = Outcome()
    async with running("process", REPLICAS, options) as system:
        killing = asyncio.create_task(_kill(system, count, outcome, log))
        target = Target.parse(system.url("/home"))
        while not killing.done():
            record = await run(target, Load(BATCH, CLIENTS, together=True), _varied(system, outcome.requests))
            outcome.requests += len(record.status)
            outcome.seconds += record.took
            outcome.errors += record.errors
        await killing
    return outcome


def _varied(system: System, first: int) -> Callable[[int], bytes]:
    """Makes the requests of a batch. All have the one path of the sample replica; query and cookie vary."""
    host = f"127.0.0.1:{system.port}"
    return lambda number: request(first + number, host, "/home")


async def _kill(system: System, count: int, outcome: Outcome, log: Callable[[str], None]) -> None:
    for _ in range(count):
        victim = random.choice(await system.replicas())
        await system.kill(victim)
        outcome.kills += 1
        async with asyncio.timeout(REPLACED_WITHIN):
            while True:
                if _replaced(await system.replicas(), victim["id"]):
                    break
                await asyncio.sleep(0.05)
        log(f"kill {outcome.kills}: {victim['hostname']}")


def _replaced(present: list[dict[str, str]], victim: str) -> bool:
    """Whether all replicas are up and the killed one is not among them."""
    return all(replica["state"] == "up" and replica["id"] != victim for replica in present)
