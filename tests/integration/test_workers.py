"""Data planes in processes of their own: one fleet, one set of books, whoever carries the request."""

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
"""`sitecustomize`: workers end at their start, or fail, while a file of that name is there."""

ODD = ("--command", replica("odd"), "--workers", "2")


@pytest.fixture
def lb() -> Iterator[LoadBalancer]:
    with LoadBalancer(*ODD, replicas=2) as running:
        running.wait_for("workers ready")
        yield running


def workers(lb: LoadBalancer) -> list[int]:
    """The process ids of its workers."""
    pid = lb.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child) for child in children if b"workers.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


@contextmanager
def sabotaged(folder: Path, *options: str) -> Iterator[LoadBalancer]:
    """A load balancer whose workers cannot start while `folder` has a file `exit` or `raise`."""
    (folder / "sitecustomize.py").write_text(SABOTAGE)
    env = {"PYTHONPATH": str(folder), "SABOTAGE": str(folder)}
    with LoadBalancer(*ODD, *options, replicas=2, env=env) as lb:
        lb.wait_for("workers ready")
        yield lb


def accepting(pid: int) -> int:
    """From how many listening sockets a worker accepts: it holds those twice."""
    links = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(descriptor))
        except FileNotFoundError:  # closed meanwhile
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
    """Ask again and again, four at a time, while a `with` block lasts: the statuses of the answers."""
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


def test_what_they_count_adds_up(lb: LoadBalancer) -> None:
    assert len(workers(lb)) == 2
    for number in range(40):  # each on a connection of its own, which the kernel gives to one or the other
        assert lb.call("GET", f"/{number}").status == 200
    eventually(lambda: counted(lb) == 40, "all requests are counted")
    text = lb.call("GET", "/lb/metrics").body.decode()
    assert "lb_request_duration_seconds_count 40.0" in text
    assert "lb_requests_in_flight 0.0" in text


def test_both_carry_requests(lb: LoadBalancer) -> None:
    def time_used(pid: int) -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = {pid: time_used(pid) for pid in workers(lb)}

    def both_have_worked() -> bool:
        for _ in range(50):
            assert lb.call("GET", "/x").status == 200
        return all(time_used(pid) > before[pid] for pid in before)

    eventually(both_have_worked, "both workers spend time")


def test_rm_waits_for_what_is_in_flight_in_a_worker(lb: LoadBalancer) -> None:
    asking, replies = in_background(lambda: lb.call("GET", "/slow?seconds=1"))
    eventually(lambda: sum(r["in_flight"] for r in lb.state().values()) == 1, "the request is in flight")
    (busy,) = [name for name, state in lb.state().items() if state["in_flight"]]
    assert lb.call("DELETE", "/rm", {"n": 1, "hostnames": [busy]}).status == 200
    asking.join()
    assert replies[0].status == 200
    assert busy not in lb.members()


def test_replicas_come_and_go_without_a_lost_request(lb: LoadBalancer) -> None:
    with loading(lambda: request(lb.port, "GET", "/x").status) as statuses:
        for _ in range(4):
            assert lb.call("POST", "/add", {"n": 1, "hostnames": ["extra"]}).status == 200
            assert lb.call("DELETE", "/rm", {"n": 1, "hostnames": ["extra"]}).status == 200
        mark = lb.mark()
        os.kill(lb.pid("Server-1"), signal.SIGKILL)
        lb.wait_for("replica up", after=mark)
    assert set(statuses) == {200}
    assert len(statuses) > 50


def test_a_worker_that_dies_is_replaced_and_its_books_are_closed(lb: LoadBalancer) -> None:
    held = []
    for _ in range(8):  # so that each of the two holds some
        connection = socket.create_connection(("127.0.0.1", lb.port), timeout=20)
        connection.sendall(b"GET /slow?seconds=20 HTTP/1.1\r\nHost: x\r\n\r\n")
        held.append(connection)
    eventually(lambda: sum(r["in_flight"] for r in lb.state().values()) == 8, "all are in flight")
    first, second = workers(lb)
    os.kill(first, signal.SIGKILL)
    record = lb.wait_for("worker lost")
    assert record["reason"] == "was killed by signal 9 (SIGKILL)"
    for _ in range(20):
        assert lb.call("GET", "/x").status == 200, "whoever it falls to, it is answered"
    eventually(lambda: len(workers(lb)) == 2, "there are two again")
    assert second in workers(lb)
    for connection in held:
        connection.close()
    eventually(lambda: all(r["in_flight"] == 0 for r in lb.state().values()), "nothing is in flight")
    assert all(r["state"] == "up" for r in lb.state().values())


def test_they_serve_while_the_control_plane_stands_still(lb: LoadBalancer) -> None:
    before = workers(lb)
    asked = 0
    os.kill(lb.process.pid, signal.SIGSTOP)
    try:
        until = time.monotonic() + 11  # longer than a worker may be silent
        while time.monotonic() < until:
            assert lb.call("GET", "/x").status == 200
            asked += 1
    finally:
        os.kill(lb.process.pid, signal.SIGCONT)
    eventually(lambda: counted(lb) == asked, "what happened meanwhile is counted")
    assert workers(lb) == before, "nobody is taken for stuck because the control plane was"


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
        for _ in range(40):  # each falls to one socket or the other
            assert request(lb.port, "GET", "/x", timeout=10).status == 200
        assert lb.wait_for("worker lost", 2)["reason"] == "ended with status 3"
        assert accepting(other) == 2
        (tmp_path / "exit").unlink()
        eventually(lambda: len(workers(lb)) == 2, "there are two again")
        eventually(lambda: accepting(other) == 1, "the socket is given back")
        replacement = next(pid for pid in workers(lb) if pid != other)
        assert accepting(replacement) == 1


def test_an_error_of_ours_in_a_worker_is_logged_with_its_trace(tmp_path: Path) -> None:
    with sabotaged(tmp_path) as lb:
        (tmp_path / "raise").touch()
        os.kill(workers(lb)[0], signal.SIGKILL)
        trace = str(lb.wait_for("worker failed")["exception"])
        assert "out of luck" in trace
        assert "sitecustomize" in trace
        assert "locals" not in trace, "they may hold the private key"
        assert lb.wait_for("worker lost", 2)["reason"] == "ended with status 1"
        (tmp_path / "raise").unlink()
        assert not [record for record in lb.records if "Traceback" in record["event"]]


def test_connections_that_wait_for_a_worker_that_dies_are_served_by_another(tmp_path: Path) -> None:
    with sabotaged(tmp_path) as lb:
        (tmp_path / "exit").touch()
        victim = workers(lb)[0]
        os.kill(victim, signal.SIGSTOP)  # what comes now waits in the kernel
        waiting = [socket.create_connection(("127.0.0.1", lb.port), timeout=20) for _ in range(40)]
        os.kill(victim, signal.SIGKILL)
        for connection in waiting:
            connection.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        for connection in waiting:
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
            connection.close()
        (tmp_path / "exit").unlink()


def test_a_worker_that_is_stuck_holds_new_connections_up_for_a_moment_only(lb: LoadBalancer) -> None:
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
    assert time.monotonic() - began < 8, "well before the worker is taken for stuck"
    lb.wait_for("worker silent")
    assert accepting(other) == 2
    os.kill(stuck, signal.SIGCONT)
    lb.wait_for("worker heard again")
    eventually(lambda: accepting(other) == 1, "the socket is given back")
    assert workers(lb) == before
    assert lb.call("GET", "/x").status == 200


def test_a_worker_that_is_stuck_is_replaced(lb: LoadBalancer) -> None:
    stuck = workers(lb)[0]
    os.kill(stuck, signal.SIGSTOP)
    assert lb.wait_for("worker lost")["reason"] == "was silent for 10 s, and was killed"
    eventually(lambda: len(workers(lb)) == 2, "there are two again")
    assert stuck not in workers(lb)
    assert lb.call("GET", "/x").status == 200


def test_a_stuck_worker_does_not_hold_the_end_up_for_longer_than_the_drain() -> None:
    with LoadBalancer(*ODD, "--drain-timeout", "0.5", replicas=1) as lb:
        lb.wait_for("workers ready")
        os.kill(workers(lb)[0], signal.SIGSTOP)
        began = time.monotonic()
        assert lb.stop() == 0
        assert time.monotonic() - began < 8, "well before the worker is taken for stuck"


def test_sigterm_lets_them_finish(lb: LoadBalancer) -> None:
    asking = [in_background(lambda: lb.call("GET", "/slow?seconds=1")) for _ in range(6)]
    eventually(lambda: sum(r["in_flight"] for r in lb.state().values()) == 6, "all are in flight")
    lb.process.send_signal(signal.SIGTERM)
    lb.wait_for("stopping")
    for thread, replies in asking:
        thread.join()
        assert replies[0].status == 200
        assert replies[0].headers["Connection"] == "close"
    assert lb.process.wait(20) == 0


def test_the_end_of_the_control_plane_is_theirs_when_replicas_are_processes(lb: LoadBalancer) -> None:
    orphans = workers(lb)
    lb.kill()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans), "they have ended")


def test_a_port_is_not_shared_by_two(lb: LoadBalancer) -> None:
    for count in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "loadbalancer", "serve", "--port", str(lb.port), "--workers", count],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert f"cannot listen on 127.0.0.1:{lb.port}: Address already in use" in done.stderr


def test_a_replica_that_fails_everywhere_is_ejected() -> None:
    failing = 'case "$HOSTNAME" in Server-1) export FAIL=1;; esac; exec python'
    command = f"sh -c '{failing} {replica('odd').removeprefix('python ')}'"
    options = ("--workers", "2", "--command", command, "--policy", "round-robin", "--eject-after", "3")
    with LoadBalancer(*options, replicas=2) as lb:
        lb.wait_for("workers ready")
        statuses = [lb.call("GET", "/maybe").status for _ in range(30)]
        lb.wait_for("replica ejected", replica="Server-1")
        assert 3 <= statuses.count(500) < 10, "what each worker has seen is put together"
        assert lb.state()["Server-1"]["reason"] == "ejected for 5 s after 3 failed requests in a row"
        assert {lb.call("GET", "/maybe").status for _ in range(20)} == {200}


def test_https_by_workers(tmp_path: Path) -> None:
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
            """Whether both workers, most likely, have the new certificate."""
            try:
                return all(
                    speak_http1(issued.connect(lb.port), "/rep").startswith("HTTP/1.1 200") for _ in range(20)
                )
            except ssl.SSLCertVerificationError:
                return False

        eventually(is_renewed, "every connection gets the new certificate")


def test_workers_get_the_certificate_that_was_good_when_the_files_have_become_bad(tmp_path: Path) -> None:
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


def test_a_burst_of_connections_is_spread(lb: LoadBalancer) -> None:
    """In flight is bounded by each worker for its own requests: together, within the sum of the bounds."""
    connections = [socket.create_connection(("127.0.0.1", lb.port), timeout=20) for _ in range(40)]
    for connection in connections:
        connection.sendall(b"GET /slow?seconds=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    most = 0
    deadline = time.monotonic() + 20
    while most < 40 and time.monotonic() < deadline:
        loads = [state["in_flight"] for state in lb.state().values()]
        most = max(most, sum(loads))
        assert max(loads) <= 1.25 * 40 / 2 + 2, "the bound of 25, and one for the rounding of each worker"
    assert most == 40
    for connection in connections:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        connection.close()
