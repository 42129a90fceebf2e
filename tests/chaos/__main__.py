"""`make chaos`: every fault several times, with processes and with containers, and a report of it.

Bounded in count and time; replicas are its own, and load goes to loopback only.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import platform
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.chaos.engine import BreakableEngine
from tests.chaos.faults import (
    DOCKER_ONLY,
    FAULTS,
    RATE,
    Fault,
    Outcome,
    System,
    freeze_container,
    freeze_process,
    kill_container,
    kill_process,
    restart_engine,
)
from tests.harness import LoadBalancer, replica

ROOT = Path(__file__).parent.parent.parent


@contextlib.contextmanager
def odd_image() -> Iterator[str]:
    """An image of the replica that these faults need, made from the sample's."""
    tag = f"lbtest-{uuid.uuid4().hex[:8]}"
    dockerfile = "FROM loadbalancer-server:latest\nCOPY odd.py .\nENV HOST=0.0.0.0\nCMD python odd.py\n"
    with tempfile.NamedTemporaryFile("w", suffix=".Dockerfile") as file:
        file.write(dockerfile)
        file.flush()
        context = str(ROOT / "tests" / "replicas")
        build = ["docker", "build", "--quiet", "--tag", tag, "--file", file.name, context]
        subprocess.run(build, check=True, capture_output=True)
    try:
        yield tag
    finally:
        subprocess.run(["docker", "rmi", "--force", tag], check=True, capture_output=True)


async def once(fault: Fault, backend: str, image: str) -> Outcome:
    """Have a fault happen to a system of its own: so none is a sequel to another."""
    if backend == "process":
        with LoadBalancer("--command", replica("odd")) as lb:
            return await fault(System(lb, kill_process, freeze_process))
    options = ("--backend", "docker", "--image", image, "--fleet", f"chaos-{uuid.uuid4().hex[:8]}")
    with tempfile.TemporaryDirectory() as folder:
        async with BreakableEngine(Path(folder) / "docker.sock") as road:
            lb = LoadBalancer(*options, env={"DOCKER_HOST": f"unix://{road.path}"})
            await asyncio.to_thread(lb.start)
            try:
                return await fault(System(lb, kill_container, freeze_container, road))
            finally:
                await asyncio.to_thread(lb.__exit__, None, None, None)


def row(fault: str, backend: str, outcomes: list[Outcome]) -> str:
    requests, failed = Counter[str](), Counter[str]()
    for outcome in outcomes:
        requests += outcome.requests
        failed += outcome.failed
    recoveries = [outcome.recovery for outcome in outcomes if outcome.recovery is not None]
    recovery = f"{median(recoveries):.2f} s ({max(recoveries):.2f} s)" if recoveries else "—"
    others = ", ".join(f"{count} × {what}" for what, count in sorted(requests.items()) if what != "200")
    return (
        f"| {fault} | {backend} | {len(outcomes)} | {requests.total()} | {failed.total()} "
        f"| {others or '—'} | {recovery} |"
    )


REPORT = """# What clients notice when things break

Made by `{command}` on {cores} cores, {system}, Python {python}. Three replicas, a steady load of {rate:g}
idempotent requests a second in an open loop, default settings. *Failed* are requests that clients lost and
should not have lost; *not 200* are all that were answered with anything else, or not at all. *Recovery* is
the time from the fault (from the engine's return, where it was away) until all replicas were in rotation
again: the median, and in brackets the longest.

| fault | replicas | times | requests | failed | not 200 | recovery |
|---|---|---|---|---|---|---|
{rows}

A request that waits at a replica stopped by a signal is sent to another when that one is found dead and
killed; it is a 504 only where `--response-timeout` ends before that. Requests that come while no load
balancer runs are refused by the kernel: nobody is there to queue them.
"""


def merged(page: Path, rows: list[str]) -> list[str]:
    """The rows of an earlier report, with those that have been measured anew in their places."""
    earlier = (
        [line for line in page.read_text().splitlines() if line.startswith("| ")] if page.exists() else []
    )
    by_fault = {tuple(line.split("|")[1:3]): line for line in [*earlier, *rows]}
    return [line for line in by_fault.values() if not line.startswith("| fault |")]


def report(rows: list[str], command: str) -> str:
    return REPORT.format(
        command=command,
        cores=os.cpu_count(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        rate=RATE,
        rows="\n".join(rows),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=["process", "docker", "both"], default="both")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--restart-engine", default="", help="command that restarts the Docker Engine")
    parser.add_argument("--restarted", default="", help="what to add to the name of that fault")
    parser.add_argument("--report", type=Path, help="write the report there")
    options = parser.parse_args()
    backends = ["process", "docker"] if options.backend == "both" else [options.backend]
    faults = dict(FAULTS)
    if options.restart_engine:
        faults[f"engine restarted{options.restarted}"] = restart_engine(options.restart_engine)
    rows, lost = [], 0
    with odd_image() if "docker" in backends else contextlib.nullcontext("") as image:
        for (fault, run), backend in itertools.product(faults.items(), backends):
            if options.only not in fault or (backend == "process" and fault.startswith(DOCKER_ONLY)):
                continue
            outcomes = [asyncio.run(once(run, backend, image)) for _ in range(options.repeat)]
            rows.append(row(fault, backend, outcomes))
            lost += sum(outcome.failed.total() for outcome in outcomes)
            print(rows[-1], flush=True)
    if options.report:
        options.report.write_text(report(merged(options.report, rows), "make chaos"))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
