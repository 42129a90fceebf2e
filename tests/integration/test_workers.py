"""Workers: several processes serve one port for one fleet, and their counts add up."""

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import LoadBalancer, Reply, eventually, replica, request
from tests.integration.test_tls import Issued, speak_http1, speak_http2

SABOTAGE = """\
import os, socket, sys

if "loadbalancer.workers.worker" in sys.orig_argv:
    if os.path.exists(os.environ["SABOTAGE"] + "/exit"):
        os._exit(3)
    if os.path.exists(os.environ["SABOTAGE"] + "/raise"):
        def dup(self):
            raise RuntimeError("out of luck")
        socket.socket.dup = dup
"""
"""A `sitecustomize` module: workers exit at their start, or raise, while a file `exit` or `raise` exists."""

ODD = ("--command", replica("odd"), "--workers", "2")


@pytest.fixture
def lb() -> Iterator[LoadBalancer]:
    with LoadBalancer(*ODD, replicas=2) as running:
        running.wait_for("workers ready")
        yield running


def workers(lb: LoadBalancer) -> list[int]:
    """Return the process ids of the workers."""
    pid = lb.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child) for child in children if b"workers.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


@contextmanager
def sabotaged(folder: Path, *options: str) -> Iterator[LoadBalancer]:
    """Run a load balancer whose workers cannot start while `folder` has a file `exit` or `raise`."""
    (folder / "sitecustomize.py").write_text(SABOTAGE)
    env = {"PYTHONPATH": str(folder), "SABOTAGE": str(folder)}
    with LoadBalancer(*ODD, *options, replicas=2, env=env) as lb:
        lb.wait_for("workers ready")
        yield lb


def accepting(pid: int) -> int:
    """Count the listening sockets from which a worker accepts: it has two descriptors for each of them."""
    links = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(descriptor))
        except FileNotFoundError:  # closed since the listing
            continue
    return sum(count == 2 for link, count in Counter(links).items() if link.startswith("socket:"))


def counted(lb: LoadBalancer) -> int:
    text = lb.call("GET", "/lb/metrics").body.decode()
    return sum(
        int(float(count)) for count in re.findall(r"^lb_requests_total\{.*\} (\S+)$", text, re.MULTILINE)
    )


def in_background(ask: Callable[[], Reply]) -> tuple[threading.Thread, list[Reply]]:
    replies: list[Reply] = []
    thread = threading.Thread(target=lambda: replies.append(ask()))
    thread.start()
    return thread, replies


@contextmanager
def loading(ask: Callable[[], int]) -> Iterator[list[int]]:
    """Send requests from four threads during a `with` block, and collect the statuses of the answers."""
    stop = threading.Event()
    statuses: list[int] = []

    def load() -> None:
        while not stop.is_set():
            try:
                statuses.append(ask())
            except OSError as error:
                statuses.append(-(error.errno or 1))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_the_counts_of_the_workers_add_up(lb: LoadBalancer) -> None:
    assert len(workers(lb)) == 2
    for number in range(40):  # each on its own connection, which the kernel gives to one of the workers
        assert lb.call("GET", f"/{number}").status == 200
    eventually(lambda: counted(lb) == 40, "all requests are counted")
    text = lb.call("GET", "/lb/metrics").body.decode()
    assert "lb_request_duration_seconds_count 40.0" in text
    assert "lb_requests_in_flight 0.0" in text


def test_both_workers_serve_requests(lb: LoadBalancer) -> None:
    def time_used(pid: int) -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = {pid: time_used(pid) for pid in workers(lb)}

    def both_have_worked() -> bool:
        for _ in range(50):
            assert lb.call("GET", "/x").status == 200
        return all(time_used(pid) > before[pid] for pid in before)

    eventually(both_have_worked, "both workers spend time")


def test_rm_waits_for_requests_in_flight_in_a_worker(lb: LoadBalancer) -> None:
    asking, replies = in_background(lambda: lb.call("GET", "/slow?seconds=1"))
    eventually(lambda: sum(r["in_flight"] for r in lb.state().values()) == 1, "the request is in flight")
    (busy,) = [name for name, state in lb.state().items() if state["in_flight"]]
    assert lb.call("DELETE", "/rm", {"n": 1, "hostnames": [busy]}).status == 200
    asking.join()
    assert replies[0].status == 200
    assert busy not in lb.members()


def test_no_request_is_lost_while_replicas_come_and_go(lb: LoadBalancer) -> None:
    with loading(lambda: request(lb.port, "GET", "/x").status) as statuses:
        for _ in range(4):
            assert lb.call("POST", "/add", {"n": 1, "hostnames": ["extra"]}).status == 200
            assert lb.call("DELETE", "/rm", {"n": 1, "hostnames": ["extra"]}).status == 200
        mark = lb.mark()
        os.kill(lb.pid("Server-1"), signal.SIGKILL)
        lb.wait_for("replica up", after=mark)
    assert set(statuses) == {200}
    assert len(statuses) > 50


def test_a_worker_that_dies_is_replaced_and_its_leases_end(lb: LoadBalancer) -> None:
    held = []
    for _ in range(8):  # enough for each of the two workers to get some
        connection = socket.create_connection(("127.0.0.1", lb.port), timeout=20)
        connection.sendall(b"GET /slow?seconds=20 HTTP/1.1\r\nHost: x\r\n\r\n")
        held.append(connection)
    eventually(lambda: sum(r["in_flight"] for r in lb.state().values()) == 8, "all are in flight")
    first, second = workers(lb)
    os.kill(first, signal.SIGKILL)
    record = lb.wait_for("worker lost")
    assert record["reason"] == "was killed by signal 9 (SIGKILL)"
    for _ in range(20):
        assert lb.call("GET", "/x").status == 200, "requests to either socket are answered"
    eventually(lambda: len(workers(lb)) == 2, "there are two again")
    assert second in workers(lb)
    for connection in held:
        connection.close()
    eventually(lambda: all(r["in_flight"] == 0 for r in lb.state().values()), "nothing is in flight")
    assert all(r["state"] == "up" for r in lb.state().values())


def test_workers_serve_while_the_control_plane_is_paused(lb: LoadBalancer) -> None:
    before = workers(lb)
    asked = 0
    os.kill(lb.process.pid, signal.SIGSTOP)
    try:
        until = time.monotonic() + 11  # longer than the permitted silence of a worker
        while time.monotonic() < until:
            assert lb.call("GET", "/x").status == 200
            asked += 1
    finally:
        os.kill(lb.process.pid, signal.SIGCONT)
    eventually(lambda: counted(lb) == asked, "the requests during the pause are counted")
    assert workers(lb) == before, "the pause does not count as silence of the workers"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSEGV, "was killed by signal 11 (SIGSEGV)"),
        (signal.SIGRTMIN + 1, f"was killed by signal {signal.SIGRTMIN + 1}"),
    ],
)
def test_the_signal_that_killed_a_worker_is_named(lb: LoadBalancer, number: int, reason: str) -> None:
    os.kill(workers(lb)[0], number)
    assert lb.wait_for("worker lost")["reason"] == reason


def test_a_worker_that_cannot_start_leaves_no_part_of_the_port_without_service(tmp_path: Path) -> None:
    with sabotaged(tmp_path) as lb:
        killed, other = workers(lb)
        eventually(lambda: accepting(killed) == accepting(other) == 1, "each serves its own socket")
        (tmp_path / "exit").touch()
        os.kill(killed, signal.SIGKILL)
        lb.wait_for("worker lost", 2)
        for _ in range(40):  # each connection goes to one of the two sockets
            assert request(lb.port, "GET", "/x", timeout=10).status == 200
        assert lb.wait_for("worker lost", 2)["reason"] == "ended with status 3"
        assert accepting(other) == 2
        (tmp_path / "exit").unlink()
        eventually(lambda: len(workers(lb)) == 2, "there are two again")
        eventually(lambda: accepting(other) == 1, "the socket is returned")
        replacement = next(pid for pid in workers(lb) if pid != other)
        assert accepting(replacement) == 1


def test_an_unexpected_error_in_a_worker_is_logged_with_its_trace(tmp_path: Path) -> None:
    with sabotaged(tmp_path) as lb:
        (tmp_path / "raise").touch()
        os.kill(workers(lb)[0], signal.SIGKILL)
        trace = str(lb.wait_for("worker failed")["exception"])
        assert "out of luck" in trace
        assert "sitecustomize" in trace
        assert "locals" not in trace, "local variables may contain the private key"
        assert lb.wait_for("worker lost", 2)["reason"] == "ended with status 1"
        (tmp_path / "raise").unlink()
        assert not [record for record in lb.records if "Traceback" in record["event"]]


def test_connections_that_wait_for_a_worker_that_dies_are_served_by_another(tmp_path: Path) -> None:
    with sabotaged(tmp_path) as lb:
        (tmp_path / "exit").touch()
        victim = workers(lb)[0]
        os.kill(victim, signal.SIGSTOP)  # new connections of its socket wait in the kernel
        waiting = [socket.create_connection(("127.0.0.1", lb.port), timeout=20) for _ in range(40)]
        os.kill(victim, signal.SIGKILL)
        for connection in waiting:
            connection.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        for connection in waiting:
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
            connection.close()
        (tmp_path / "exit").unlink()


def test_another_worker_soon_accepts_from_the_socket_of_a_stuck_worker(lb: LoadBalancer) -> None:
    before = workers(lb)
    stuck, other = before
    os.kill(stuck, signal.SIGSTOP)
    began = time.monotonic()
    waiting = [socket.create_connection(("127.0.0.1", lb.port), timeout=20) for _ in range(40)]
    for connection in waiting:
        connection.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    for connection in waiting:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        connection.close()
    assert time.monotonic() - began < 8, "well before the stuck worker is killed"
    lb.wait_for("worker silent")
    assert accepting(other) == 2
    os.kill(stuck, signal.SIGCONT)
    lb.wait_for("worker serving again")
    eventually(lambda: accepting(other) == 1, "the socket is returned")
    assert workers(lb) == before
    assert lb.call("GET", "/x").status == 200


def test_a_worker_that_is_stuck_is_replaced(lb: LoadBalancer) -> None:
    stuck = workers(lb)[0]
    os.kill(stuck, signal.SIGSTOP)
    assert lb.wait_for("worker lost")["reason"] == "was silent for 10 s, and was killed"
    eventually(lambda: len(workers(lb)) == 2, "there are two again")
    assert stuck not in workers(lb)
    assert lb.call("GET", "/x").status == 200


def test_a_stuck_worker_does_not_delay_the_shutdown_beyond_the_drain_timeout() -> None:
    with LoadBalancer(*ODD, "--drain-timeout", "0.5", replicas=1) as lb:
        lb.wait_for("workers ready")
        os.kill(workers(lb)[0], signal.SIGSTOP)
        began = time.monotonic()
        assert lb.stop() == 0
        assert time.monotonic() - began < 8, "well before the stuck worker is killed"


def test_workers_finish_their_requests_after_sigterm(lb: LoadBalancer) -> None:
    asking = [in_background(lambda: lb.call("GET", "/slow?seconds=1")) for _ in range(6)]
    eventually(lambda: sum(r["in_flight"] for r in lb.state().values()) == 6, "all are in flight")
    lb.process.send_signal(signal.SIGTERM)
    lb.wait_for("stopping")
    for thread, replies in asking:
        thread.join()
        assert replies[0].status == 200
        assert replies[0].headers["Connection"] == "close"
    assert lb.process.wait(20) == 0


def test_workers_end_with_the_control_plane_when_replicas_are_processes(lb: LoadBalancer) -> None:
    orphans = workers(lb)
    lb.kill()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans), "they have ended")


def test_two_load_balancers_cannot_share_a_port(lb: LoadBalancer) -> None:
    for count in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "loadbalancer", "serve", "--port", str(lb.port), "--workers", count],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert f"cannot listen on 127.0.0.1:{lb.port}: Address already in use" in done.stderr


def test_the_failures_that_several_workers_see_eject_a_replica() -> None:
    failing = 'case "$HOSTNAME" in Server-1) export FAIL=1;; esac; exec python'
    command = f"sh -c '{failing} {replica('odd').removeprefix('python ')}'"
    options = ("--workers", "2", "--command", command, "--policy", "round-robin", "--eject-after", "3")
    with LoadBalancer(*options, replicas=2) as lb:
        lb.wait_for("workers ready")
        statuses = [lb.call("GET", "/maybe").status for _ in range(30)]
        lb.wait_for("replica ejected", replica="Server-1")
        assert 3 <= statuses.count(500) < 10, "the failures of the workers are added up"
        assert lb.state()["Server-1"]["reason"] == "ejected for 5 s after 3 failed requests in a row"
        assert {lb.call("GET", "/maybe").status for _ in range(20)} == {200}


def test_workers_serve_https_and_get_a_renewed_certificate(tmp_path: Path) -> None:
    issued = Issued(tmp_path)
    with LoadBalancer(*issued.options, *ODD, replicas=1) as lb:
        lb.wait_for("workers ready")
        answers = speak_http2(issued.connect(lb.port, "h2"), "/x", "/rep", "/lb/health")
        assert {status for status, _ in answers.values()} == {200}
        assert b'"N": 1' in answers["/rep"][1]
        issued.renew()
        lb.process.send_signal(signal.SIGHUP)
        lb.wait_for("certificate reloaded")

        def is_renewed() -> bool:
            """Check 20 connections, so that both workers most likely serve some of them."""
            try:
                return all(
                    speak_http1(issued.connect(lb.port), "/rep").startswith("HTTP/1.1 200") for _ in range(20)
                )
            except ssl.SSLCertVerificationError:
                return False

        eventually(is_renewed, "every connection gets the new certificate")


def test_restarted_workers_get_the_last_valid_certificate_when_the_files_are_invalid(tmp_path: Path) -> None:
    issued = Issued(tmp_path)
    secret = issued.key.read_text().splitlines()[1]
    with LoadBalancer(*issued.options, *ODD, replicas=1) as lb:
        lb.wait_for("workers ready")
        issued.cert.write_text("no certificate")
        issued.key.unlink()
        lb.process.send_signal(signal.SIGHUP)
        lb.wait_for("certificate not reloaded")
        before = workers(lb)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        lb.wait_for("worker lost", 2)
        eventually(lambda: len(workers(lb)) == 2 and not set(workers(lb)) & set(before), "both are replaced")
        for _ in range(20):
            assert speak_http1(issued.connect(lb.port), "/rep").startswith("HTTP/1.1 200")
        eventually(lambda: [accepting(pid) for pid in workers(lb)] == [1, 1], "each serves its own socket")
        assert len([r for r in lb.records if r["event"] == "certificate not reloaded"]) == 1
        assert len([r for r in lb.records if r["event"] == "worker lost"]) == 2
        assert secret not in str(lb.records)


def test_a_burst_of_connections_is_spread_over_the_replicas(lb: LoadBalancer) -> None:
    """Each worker bounds the load by its own requests, so the sum is within the sum of the bounds."""
    connections = [socket.create_connection(("127.0.0.1", lb.port), timeout=20) for _ in range(40)]
    for connection in connections:
        connection.sendall(b"GET /slow?seconds=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    most = 0
    deadline = time.monotonic() + 20
    while most < 40 and time.monotonic() < deadline:
        loads = [state["in_flight"] for state in lb.state().values()]
        most = max(most, sum(loads))
        assert max(loads) <= 1.25 * 40 / 2 + 2, "the bound of 25, and 1 for the rounding in each worker"
    assert most == 40
    for connection in connections:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        connection.close()
