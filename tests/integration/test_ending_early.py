"""SIGTERM and SIGINT at any moment of the start: the load balancer ends and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import PATIENCE, LoadBalancer, eventually, free_port, replica

LANES = [("--workers", "1"), ("--workers", "2"), ("--lane", "asgi")]

NEVER_UP = ("--command", "sleep 1000")

SLOW_RESOLVER = """\
import socket, sys, threading
def getaddrinfo(*args, **named):
    print("resolving", file=sys.stderr, flush=True)
    threading.Event().wait(60)
socket.getaddrinfo = getaddrinfo
from loadbalancer.cli.commands import main
main()
"""


SLOW_IMPORT = """\
import sys, threading
class Finder:
    def find_spec(name, path, target=None):
        if name == "loadbalancer.app":
            print("importing", file=sys.stderr, flush=True)
            threading.Event().wait(60)
sys.meta_path.insert(0, Finder)
from loadbalancer.cli.commands import main
main()
"""


class Trace:
    """Finds the processes that a load balancer leaves by their environment, and the files by their folder."""

    def __init__(self, folder: Path) -> None:
        self._mark = f"TRACE={uuid.uuid4().hex}"
        self._folder = folder
        self.env = {"TRACE": self._mark.partition("=")[2], "TMPDIR": str(folder)}

    def processes(self) -> list[str]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_text().replace("\0", " "))
            except (OSError, ProcessLookupError):
                continue
        return [found for found in found if found]  # zombies have no command line

    def files(self) -> list[str]:
        return sorted(path.name for path in self._folder.iterdir())


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Trace]:
    trace = Trace(tmp_path)
    yield trace
    eventually(lambda: not trace.processes(), "every process has ended")
    assert trace.files() == []


def serve(trace: Trace, *options: str) -> LoadBalancer:
    lb = LoadBalancer("--replicas", "2", *options, replicas=0, env=trace.env)
    lb._argv[lb._argv.index("--replicas") + 1] = (
        "2"  # the harness must not wait for replicas that are never up
    )
    return lb


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("lane", LANES)
def test_a_signal_while_replicas_start_ends_everything(
    trace: Trace, lane: tuple[str, ...], number: int
) -> None:
    with serve(trace, *NEVER_UP, *lane) as lb:
        lb.wait_for("replica starting", 2)
        lb.process.send_signal(number)
        assert lb.process.wait(5) == 0
    assert lb.records[-1]["event"] == "stopped"


@pytest.mark.parametrize("lane", LANES)
def test_a_second_signal_while_replicas_start_ends_everything_at_once(
    trace: Trace, lane: tuple[str, ...]
) -> None:
    ignore = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(1000)"
    stubborn = f"python -c '{ignore}'"
    patient = ("--stop-timeout", "600", "--drain-timeout", "600")
    with serve(trace, "--command", stubborn, *patient, *lane) as lb:
        lb.wait_for("output", 2)
        lb.process.send_signal(signal.SIGTERM)
        lb.wait_for("stopping")
        with pytest.raises(subprocess.TimeoutExpired):
            lb.process.wait(1)
        lb.process.send_signal(signal.SIGTERM)
        assert lb.process.wait(5) == 0


@pytest.mark.parametrize("lane", LANES)
def test_a_signal_at_any_moment_leaves_nothing_behind(trace: Trace, lane: tuple[str, ...]) -> None:
    """The signal ends the process; once its handlers are installed, it first cleans everything up."""
    moments = [
        (False, 0.1, signal.SIGTERM),
        (True, 0.0, signal.SIGINT),
        (True, 0.02, signal.SIGTERM),
        (True, 0.3, signal.SIGTERM),
        (True, 0.7, signal.SIGINT),
    ]
    for has_begun, after, number in moments:
        lb = serve(trace, *NEVER_UP, *lane)
        process = subprocess.Popen(lb._argv, stderr=subprocess.PIPE, env=lb._env)
        assert process.stderr is not None
        first = process.stderr.readline() if has_begun else b""
        threading.Event().wait(after)
        process.send_signal(number)
        began = time.monotonic()
        _, log = process.communicate(timeout=20)
        assert time.monotonic() - began < 6, log.decode()
        in_order = has_begun or b"replica starting" in log
        if in_order:
            assert process.returncode == 0, (first + log).decode()
        eventually(lambda: not trace.processes(), "every process has ended")
        assert trace.files() == []


@pytest.mark.parametrize("lane", LANES)
def test_many_signals_in_a_row_still_end_in_order(trace: Trace, lane: tuple[str, ...]) -> None:
    """The signals continue while the interpreter shuts down."""
    with serve(trace, *lane) as lb:
        lb.wait_for("replica starting", 2)
        deadline = time.monotonic() + PATIENCE
        while lb.process.poll() is None and time.monotonic() < deadline:
            lb.process.send_signal(signal.SIGTERM)
            threading.Event().wait(0.01)
        assert lb.process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("program", "says"), [(SLOW_RESOLVER, b"resolving\n"), (SLOW_IMPORT, b"importing\n")]
)
def test_a_signal_before_the_port_is_bound_ends_the_process(
    trace: Trace, program: str, says: bytes, number: int
) -> None:
    argv = [sys.executable, "-c", program, "serve", "--host", "x.test", "--port", str(free_port())]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, env={**os.environ, **trace.env}) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == says
        process.send_signal(number)
        assert process.wait(5) == 0


def test_workers_that_cannot_start_do_not_delay_the_shutdown(
    trace: Trace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(
        "import os, sys\nif 'loadbalancer.workers.worker' in sys.orig_argv: os._exit(3)\n"
    )
    trace.env["PYTHONPATH"] = str(folder)
    with LoadBalancer("--command", replica("odd"), "--workers", "2", replicas=1, env=trace.env) as lb:
        lb.wait_for("worker lost", 6)  # the pauses between restarts exceed a second
        began = time.monotonic()
        assert lb.stop() == 0
        assert time.monotonic() - began < 5
