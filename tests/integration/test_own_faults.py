"""Faults of the load balancer itself, in a real process: its background tasks are killed while requests go
on.

At SIGUSR1 the process kills the task that the environment names: it cancels the task, or raises an error
where the task waits.
"""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadbalancer.errors import BackendError
from loadbalancer.fleet.backends.base import ReplicaSpec
from loadbalancer.fleet.backends.process import ProcessBackend
from loadbalancer.fleet.heartbeat import Prober, Unsent
from tests.harness import LoadBalancer, eventually, free_port, replica, request
from tests.integration.test_workers import loading

KILLER = """\
import asyncio, os, signal
import loadbalancer.app as app
from loadbalancer.cli.commands import main

def kill():
    name = os.environ["VICTIM"]
    for task in asyncio.all_tasks():
        if task.get_name() == name or (name == "main" and task is main_task):
            waiter = task
            while isinstance(waiter, asyncio.Task):
                task, waiter = waiter, waiter._fut_waiter
            if os.environ["KILL"] == "cancel" or waiter.done():
                task.cancel()
            else:
                waiter.set_exception(ZeroDivisionError("a defect"))

async def run(settings, shutdown, original=app._run):
    global main_task
    main_task = asyncio.current_task()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, kill)
    await original(settings, shutdown)

app._run = run
main()
"""


def killable(kind: str, victim: str, *options: str, replicas: int = 2) -> LoadBalancer:
    lb = LoadBalancer(*options, replicas=replicas, env={"KILL": kind, "VICTIM": victim})
    lb._argv[1:3] = ["-c", KILLER]
    return lb


@pytest.mark.parametrize(
    ("victim", "kind", "options"),
    [
        ("supervisor of Server-1", "cancel", ()),
        ("record_health", "raise", ()),
        ("process of Server-1", "cancel", ()),
        ("output of Server-1", "raise", ()),
        ("admin server", "raise", ()),
        ("admin server", "cancel", ("--workers", "2")),
        ("announcement", "raise", ("--workers", "2")),
        ("server of the ASGI lane", "raise", ("--lane", "asgi")),
    ],
)
def test_a_killed_task_is_resumed_and_requests_continue(
    victim: str, kind: str, options: tuple[str, ...]
) -> None:
    with killable(kind, victim, "--command", replica("odd"), *options) as lb:
        if "--workers" in options:
            lb.wait_for("workers ready")
        before = {name: one["id"] for name, one in lb.state().items()}
        with loading(lambda: request(lb.port, "GET", "/x").status) as statuses:
            mark = lb.mark()
            lb.process.send_signal(signal.SIGUSR1)
            event = "background task was cancelled" if kind == "cancel" else "background task failed"
            line = lb.wait_for(event, after=mark)
            enough = len(statuses) + 100
            eventually(lambda: len(statuses) >= enough, "requests go on")
        # Hypercorn closes the connections that have brought no request yet: at most one of each client.
        broken = 4 if "asgi" in options else 0
        assert len(statuses) - statuses.count(200) <= broken
        assert victim in (line["task"], "record_health"), "the supervisor owns the other"
        assert ("exception" in line) == (kind == "raise"), "an error comes with its trace"
        assert "a defect" not in str(lb.call("GET", "/lb/replicas").json)
        os.kill(lb.pid("Server-1"), signal.SIGKILL)  # The fleet still notices, and replaces.
        lb.wait_for("replica up", replica="Server-1", after=mark)
        assert lb.state()["Server-2"]["id"] == before["Server-2"]
        assert {one["restarts"] for one in lb.state().values()} == {0, 1}


@pytest.mark.parametrize(
    ("kind", "options"), [("raise", ()), ("cancel", ("--workers", "2")), ("raise", ("--lane", "asgi"))]
)
def test_a_fault_of_the_main_task_ends_the_program_with_status_1_and_a_sentence(
    kind: str, options: tuple[str, ...]
) -> None:
    lb = killable(kind, "main", "--command", replica("odd"), *options)
    lb.start()
    try:
        pids = [int(one["id"]) for one in lb.state().values()]
        lb.process.send_signal(signal.SIGUSR1)
        assert lb.process.wait(30) == 1
        failed = lb.wait_for("load balancer failed")
        assert "exception" in failed
        lb._reader.join(30)
        assert "stopped" not in [record["event"] for record in lb.records]
        assert "failed in a way that it did not foresee" in lb.records[-1]["event"]
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids), "no replica is left"
    finally:
        lb.kill()


@pytest.mark.parametrize("options", [(), ("--workers", "2"), ("--lane", "asgi")])
def test_sighup_without_a_certificate_is_ignored_with_a_line_in_the_log(options: tuple[str, ...]) -> None:
    with LoadBalancer(*options, replicas=1) as lb:
        mark = lb.mark()
        lb.process.send_signal(signal.SIGHUP)
        lb.wait_for("SIGHUP ignored", after=mark)
        assert lb.call("GET", "/home").status == 200


def test_sighup_while_the_program_starts_is_ignored() -> None:
    slow = """\
import sys, threading
class Finder:
    def find_spec(name, path, target=None):
        if name == "loadbalancer.app":
            print("importing", file=sys.stderr, flush=True)
            sys.stdin.read()
sys.meta_path.insert(0, Finder)
from loadbalancer.cli.commands import main
main()
"""
    options = ["--port", str(free_port()), "--replicas", "0", "--log-format", "json"]
    argv = [sys.executable, "-c", slow, "serve", *options]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stderr.readline() == "importing\n"
        process.send_signal(signal.SIGHUP)
        process.stdin.close()
        assert '"serving"' in process.stderr.readline()
        process.terminate()
        assert process.wait(30) == 0


@contextmanager
def no_files_left() -> Iterator[None]:
    """Let this process open no more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_heartbeat_that_cannot_be_sent_is_neither_good_nor_missed() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, Prober("/", 5) as prober:
        address = server.sockets[0].getsockname()[:2]
        with no_files_left():
            outcome = await prober.probe(*address)
        assert outcome == Unsent("no heartbeat could be sent: Too many open files")


async def test_a_process_that_cannot_be_started_for_lack_of_files_is_a_failure_with_a_sentence() -> None:
    backend = ProcessBackend("sleep 600")
    await backend.open()
    try:
        with no_files_left(), pytest.raises(BackendError, match=r"Server-1: cannot .*: Too many open files"):
            await backend.start(ReplicaSpec("Server-1", 1))
        assert backend._ports == set(), "its port is free again"
    finally:
        await backend.close()
