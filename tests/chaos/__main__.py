"""`make chaos`: injects every fault several times, with processes and with containers, and writes a report.

The number of runs and their duration are bounded. Each run starts its own load balancer and replicas, and all
load goes to loopback.
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
    """Build an image with the replica `odd`, yield its tag, and remove the image at the end."""
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
    """Inject a fault into a new system, so that no earlier fault affects the outcome."""
    if backend == "process":
        with LoadBalancer("--command", replica("odd")) as lb:
            return await fault(System(lb, kill_process, freeze_process))
    options = ("--backend", "docker", "--image", image, "--fleet", f"chaos-{uuid.uuid4().hex[:8]}")
    with tempfile.TemporaryDirectory() as folder:
        async with BreakableEngine(Path(folder) / "docker.sock") as engine:
            lb = LoadBalancer(*options, env={"DOCKER_HOST": f"unix://{engine.path}"})
            await asyncio.to_thread(lb.start)
            try:
                return await fault(System(lb, kill_container, freeze_container, engine))
            finally:
                await asyncio.to_thread(lb.__exit__, None, None, None)


def row(fault: str, backend: str, outcomes: list[Outcome]) -> str:
    """The row of the report for all runs of a fault with one backend."""
    requests, failed = Counter[str](), Counter[str]()
    for outcome in outcomes:
        requests += outcome.requests
        failed += outcome.failed
    recoveries = [outcome.recovery for outcome in outcomes if outcome.recovery is not None]
    recovery = f"{median(recoveries):.2f} s ({max(recoveries):.2f} s)" if recoveries else "—"
    others = ", ".join(
        f"{count} × {outcome}" for outcome, count in sorted(requests.items()) if outcome != "200"
    )
    return (
        f"| {fault} | {backend} | {len(outcomes)} | {requests.total()} | {failed.total()} "
        f"| {others or '—'} | {recovery} |"
    )


REPORT = """# Failed requests under faults

`make chaos` injects the faults and writes this page. The figures are from {cores} cores, {system}, Python
{python}, with three replicas, default settings and a steady load of {rate:g} idempotent requests a second in
an open loop. Each row is the sum of its runs.

- *Failed* counts the requests that failed although the load balancer should have saved them.
- *Not 200* counts all requests without a 200, by status or by the error of the client.
- *Recovery* is the time from the fault until all replicas are in rotation again: the median, and in
  brackets the longest. If the engine was unreachable or restarted, the time begins when it answers again.

| fault | backend | runs | requests | failed | not 200 | recovery |
|---|---|---|---|---|---|---|
{rows}

- **SIGSTOP of a replica.** The requests that wait for its answer go to another replica after missed
  heartbeats have shown that it hangs. They get a 504 only if `--response-timeout` ends earlier.
- **SIGKILL and restart of the load balancer.** While no load balancer runs, the kernel refuses connections.
  No request of this time can be saved.
- **Engine restarted, containers gone.** While there is no replica, requests wait for `--queue-timeout` and
  then get a 503.
"""


def merged(page: Path, rows: list[str]) -> list[str]:
    """The rows of an earlier report; a new row replaces the old one of its fault and backend."""
    earlier = (
        [line for line in page.read_text().splitlines() if line.startswith("| ")] if page.exists() else []
    )
    by_fault = {tuple(line.split("|")[1:3]): line for line in [*earlier, *rows]}
    return [line for line in by_fault.values() if not line.startswith("| fault |")]


def report(rows: list[str]) -> str:
    """The page of the report, with these rows and a description of this machine."""
    return REPORT.format(
        cores=os.cpu_count(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        rate=RATE,
        rows="\n".join(rows),
    )


def main() -> int:
    """Inject the faults and print a row for each; the exit status is 1 if a request failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--backend", choices=["process", "docker", "both"], default="both", help="backend of the replicas"
    )
    parser.add_argument("--repeat", type=int, default=5, help="number of runs of each fault")
    parser.add_argument("--only", default="", help="inject only the faults whose names contain this text")
    parser.add_argument("--restart-engine", default="", help="command that restarts the Docker Engine")
    parser.add_argument(
        "--restarted", default="", help="text to add to the name of the fault 'engine restarted'"
    )
    parser.add_argument("--report", type=Path, help="page to write the report to")
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
        options.report.write_text(report(merged(options.report, rows)))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
