"""Runs a load balancer and its replicas for an experiment, as an asynchronous context manager."""

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
"""Longest time until the load balancer and all its replicas are up, in seconds."""

ENDS_WITHIN = 30.0
"""Longest time from SIGTERM to the end of the load balancer, in seconds; then it gets SIGKILL."""


class ExperimentError(Exception):
    """The experiment cannot run; the text gives the reason."""


@dataclass(frozen=True)
class System:
    """A running load balancer.

    Args:
        port: Port on which it listens.
        pid: Id of its process.
        backend: Backend of its replicas.
        session: HTTP session for requests to it.
    """

    port: int
    pid: int
    backend: Backend
    session: aiohttp.ClientSession

    def url(self, path: str) -> str:
        """The URL of a path."""
        return f"http://127.0.0.1:{self.port}{path}"

    async def replicas(self) -> list[dict[str, Any]]:
        """The replicas of `/lb/replicas`, in the order of their ring numbers."""
        async with self.session.get(self.url("/lb/replicas")) as answer:
            found: list[dict[str, Any]] = (await answer.json())["message"]["replicas"]
            return found

    async def change(self, method: str, path: str, body: dict[str, Any]) -> float:
        """Call `/add` or `/rm`, and return the seconds until the answer.

        Args:
            method: HTTP method.
            path: `/add` or `/rm`.
            body: Body of the request, sent as JSON.

        Raises:
            ExperimentError: The load balancer refused the change.
        """
        began = time.perf_counter()
        async with self.session.request(method, self.url(path), json=body) as answer:
            if answer.status != 200:
                raise ExperimentError(f"{method} {path} answered {answer.status}: {await answer.text()}")
            await answer.read()
        return time.perf_counter() - began

    async def kill(self, replica: dict[str, Any]) -> None:
        """Kill a replica: with SIGKILL, or with `docker kill`."""
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
        backend: Backend of the replicas.
        replicas: Number of replicas.
        options: Further options of `serve`.

    Raises:
        ExperimentError: The load balancer did not start.
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
                    lines = log.read().decode(errors="replace").strip().splitlines()
                    raise ExperimentError(
                        f"the load balancer did not start: {lines[-1] if lines else 'its log is empty'}"
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
    """Yield each event of `/lb/events` with its time by `time.perf_counter`."""
    async with system.session.get(system.url("/lb/events")) as stream:
        async for line in stream.content:
            if line.startswith(b"data:"):
                yield time.perf_counter(), json.loads(line[5:])
