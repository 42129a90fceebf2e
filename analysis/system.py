"""A load balancer to experiment on, with its replicas, for as long as a `with` block lasts."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

from analysis.context import Backend

STARTS_WITHIN = 60.0
"""Seconds for the load balancer and its replicas to be up."""

ENDS_WITHIN = 30.0


class ExperimentError(Exception):
    """The experiment cannot be done; the text says why."""


@dataclass(frozen=True)
class System:
    """A running load balancer.

    Args:
        port: Where it listens.
        pid: Of its process.
        backend: Where its replicas run.
        session: To speak with it.
    """

    port: int
    pid: int
    backend: Backend
    session: aiohttp.ClientSession

    def url(self, path: str) -> str:
        """Of a path."""
        return f"http://127.0.0.1:{self.port}{path}"

    async def replicas(self) -> list[dict[str, Any]]:
        """`/lb/replicas`, in the order of the ring numbers."""
        async with self.session.get(self.url("/lb/replicas")) as answer:
            found: list[dict[str, Any]] = (await answer.json())["message"]["replicas"]
            return found

    async def change(self, method: str, path: str, body: dict[str, Any]) -> float:
        """Call `/add` or `/rm`; the seconds that it took.

        Raises:
            ExperimentError: It said no.
        """
        began = time.perf_counter()
        async with self.session.request(method, self.url(path), json=body) as answer:
            if answer.status != 200:
                raise ExperimentError(f"{method} {path} answered {answer.status}: {await answer.text()}")
            await answer.read()
        return time.perf_counter() - began

    async def kill(self, replica: dict[str, Any]) -> None:
        """End a replica as a crash would: SIGKILL, or `docker kill`."""
        if self.backend == "docker":
            kill = await asyncio.create_subprocess_exec(
                "docker", "kill", replica["id"], stdout=subprocess.DEVNULL
            )
            await kill.wait()
        else:
            os.kill(int(replica["id"]), signal.SIGKILL)


@asynccontextmanager
async def running(backend: Backend, replicas: int, options: Sequence[str] = ()) -> AsyncIterator[System]:
    """Start a load balancer, wait until all replicas are up, and stop it at the end.

    Args:
        backend: Where replicas run.
        replicas: N.
        options: Further options of `serve`.

    Raises:
        ExperimentError: It did not start.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    argv = [sys.executable, "-m", "loadbalancer", "serve", "--port", str(port), "--replicas", str(replicas)]
    argv += ["--backend", backend, "--fleet", f"analysis-{port}", "--log-level", "warning", *options]
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(*argv, stderr=log)
        try:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
            async with aiohttp.ClientSession(timeout=timeout) as session:
                system = System(port, process.pid, backend, session)
                try:
                    await _until_up(system, replicas, process)
                except TimeoutError:
                    log.seek(0)
                    said = log.read().decode(errors="replace").strip().splitlines()
                    raise ExperimentError(
                        f"the load balancer did not start: {said[-1] if said else 'it says nothing'}"
                    ) from None
                yield system
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(ENDS_WITHIN):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def _until_up(system: System, replicas: int, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(STARTS_WITHIN):
        while True:
            if process.returncode is not None:
                raise TimeoutError
            with suppress(aiohttp.ClientError):
                present = await system.replicas()
                if sum(replica["state"] == "up" for replica in present) == replicas:
                    return
            await asyncio.sleep(0.05)


async def events(system: System) -> AsyncIterator[tuple[float, dict[str, Any]]]:
    """What happens to the replicas, from `/lb/events`: `time.perf_counter` and the event."""
    async with system.session.get(system.url("/lb/events")) as stream:
        async for line in stream.content:
            if line.startswith(b"data:"):
                yield time.perf_counter(), json.loads(line[5:])
