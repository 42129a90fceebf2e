"""The whole system with replicas as processes, as `make run` starts it, with changes and faults."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import pytest

from tests.harness import LoadBalancer, eventually, replica, request

FAST = ("--heartbeat-interval", "0.1", "--heartbeat-timeout", "0.3", "--max-fail-count", "2")


@pytest.fixture
def lb() -> Iterator[LoadBalancer]:
    with LoadBalancer(*FAST) as running:
        yield running


async def load(lb: LoadBalancer, requests: int, in_flight: int) -> Counter[str]:
    """Send requests, so many at a time; count the answers by what they say, or by what went wrong."""
    outcomes: Counter[str] = Counter()
    left = iter(range(requests))

    async def client(session: aiohttp.ClientSession) -> None:
        for _ in left:
            try:
                async with session.get(f"http://127.0.0.1:{lb.port}/home") as answer:
                    body = await answer.json()
                    outcomes[body["message"] if answer.status == 200 else str(answer.status)] += 1
            except (aiohttp.ClientError, OSError) as error:
                outcomes[repr(error)] += 1

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session) for _ in range(in_flight)))
    return outcomes


async def test_ten_thousand_requests_a_thousand_in_flight_are_all_answered(lb: LoadBalancer) -> None:
    outcomes = await load(lb, 10_000, 1_000)
    assert set(outcomes) == {f"Hello from Server: Server-{number}" for number in (1, 2, 3)}
    assert sum(outcomes.values()) == 10_000
    assert min(outcomes.values()) > 2_500, f"bounded loads keep it even: {outcomes}"


def test_a_killed_replica_is_replaced_under_its_name_and_number(lb: LoadBalancer) -> None:
    before = lb.state()
    mark = lb.mark()
    os.kill(int(before["Server-2"]["id"]), signal.SIGKILL)
    lb.wait_for("replica up", replica="Server-2", after=mark)
    after = lb.state()
    assert after["Server-2"]["id"] != before["Server-2"]["id"]
    assert after["Server-2"]["number"] == 2
    assert after["Server-2"]["restarts"] == 1
    assert after["Server-2"]["reason"].startswith("killed by SIGKILL")
    for other in ("Server-1", "Server-3"):
        assert after[other]["id"] == before[other]["id"]
    assert lb.members() == ["Server-1", "Server-2", "Server-3"]


def test_a_hung_replica_is_found_by_its_heartbeats_and_replaced(lb: LoadBalancer) -> None:
    hung = lb.pid("Server-3")
    mark = lb.mark()
    os.kill(hung, signal.SIGSTOP)
    down = lb.wait_for("replica down", replica="Server-3", after=mark)
    assert down["reason"] == "missed 2 heartbeats in a row: no heartbeat within 0.3 s"
    lb.wait_for("replica up", replica="Server-3", after=mark)
    assert lb.pid("Server-3") != hung
    eventually(lambda: not os.path.exists(f"/proc/{hung}"), "the hung process is gone")


def test_two_additions_at_the_same_time_both_succeed(lb: LoadBalancer) -> None:
    with ThreadPoolExecutor() as pool:
        replies = list(pool.map(lambda _: lb.call("POST", "/add", {"n": 3}), range(2)))
    assert [reply.status for reply in replies] == [200, 200]
    names = lb.members()
    assert len(names) == len(set(names)) == 9
    for one in lb.state().values():
        port = int(one["address"].rpartition(":")[2])
        answer = request(port, "GET", "/home").json
        assert answer["message"] == f"Hello from Server: {one['hostname']}"


def test_random_additions_and_removals_end_with_the_expected_n(lb: LoadBalancer) -> None:
    changes = [("POST", "/add", 2), ("DELETE", "/rm", 1), ("POST", "/add", 1), ("DELETE", "/rm", 1)] * 3
    with ThreadPoolExecutor(max_workers=len(changes)) as pool:
        replies = list(pool.map(lambda one: lb.call(one[0], one[1], {"n": one[2]}), changes))
    assert {reply.status for reply in replies} <= {200, 400}, "too many to remove, at worst"
    done = [
        n if method == "POST" else -n
        for (method, _, n), r in zip(changes, replies, strict=True)
        if r.status == 200
    ]
    assert len(lb.members()) == len(set(lb.members())) == 3 + sum(done)


def test_rep_answers_while_replicas_are_being_added(lb: LoadBalancer) -> None:
    mark = lb.mark()
    adding = threading.Thread(target=lb.call, args=("POST", "/add", {"n": 2}))
    adding.start()
    lb.wait_for("replica starting", 2, after=mark)
    assert lb.members() == ["Server-1", "Server-2", "Server-3"]
    assert Counter(one["state"] for one in lb.state().values())["starting"] == 2
    adding.join()
    assert len(lb.members()) == 5


def test_an_addition_is_completed_when_its_client_leaves(lb: LoadBalancer) -> None:
    mark = lb.mark()
    with pytest.raises(TimeoutError):
        request(lb.port, "POST", "/add", {"n": 2, "hostnames": ["a1", "a2"]}, timeout=0.05)
    lb.wait_for("replica up", replica="a1", after=mark)
    lb.wait_for("replica up", replica="a2", after=mark)
    assert lb.members()[3:] == ["a1", "a2"]


def test_sigterm_ends_everything_in_order(lb: LoadBalancer) -> None:
    pids = [int(one["id"]) for one in lb.state().values()]
    assert lb.stop() == 0
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert lb.records[-1]["event"] == "stopped"
    assert len([record for record in lb.records if record["event"] == "replica gone"]) == 3


def test_a_request_in_flight_at_sigterm_is_answered_and_its_connection_closed() -> None:
    with LoadBalancer("--command", replica("odd"), replicas=1) as lb, ThreadPoolExecutor() as pool:
        asking = pool.submit(lb.call, "GET", "/slow?seconds=0.7")
        eventually(lambda: lb.state()["Server-1"]["in_flight"] == 1, "the request is in flight")
        lb.process.send_signal(signal.SIGTERM)
        reply = asking.result()
        assert (reply.status, reply.body) == (200, b"at last")
        assert reply.headers["Connection"] == "close"
        assert lb.process.wait(20) == 0


UNENDING = ["/events", f"/download?bytes={1 << 30}"]
"""Requests that do not end: one has no end, the other's client reads nothing of it."""


def ask_without_end(lb: LoadBalancer, target: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", lb.port))
    connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    eventually(lambda: lb.state()["Server-1"]["in_flight"] == 1, "the request is in flight")
    return connection


@pytest.mark.parametrize("target", UNENDING)
def test_a_second_sigterm_hurries(target: str) -> None:
    patient = ("--command", replica("odd"), "--drain-timeout", "600", "--stop-timeout", "600")
    with LoadBalancer(*patient, replicas=1) as lb, ask_without_end(lb, target):
        lb.process.send_signal(signal.SIGTERM)
        lb.wait_for("stopping")
        assert lb.process.poll() is None
        assert lb.stop() == 0


@pytest.mark.parametrize("target", UNENDING)
def test_endless_requests_delay_the_end_only_for_the_drain_timeout(target: str) -> None:
    impatient = ("--command", replica("odd"), "--drain-timeout", "0.2")
    with LoadBalancer(*impatient, replicas=1) as lb, ask_without_end(lb, target):
        assert lb.stop() == 0


def test_a_port_in_use_gives_one_line_and_status_1() -> None:
    with LoadBalancer(replicas=0) as lb:
        second = subprocess.run(
            [sys.executable, "-m", "loadbalancer", "serve", "--port", str(lb.port)],
            capture_output=True,
            text=True,
            timeout=20,
        )
    assert second.returncode == 1
    assert second.stderr == (
        f"loadbalancer serve: cannot listen on 127.0.0.1:{lb.port}: Address already in use\n"
    )


def test_a_missing_command_gives_one_line_and_status_1() -> None:
    with pytest.raises(AssertionError, match="there is no program 'nonsense'"):
        LoadBalancer("--command", "nonsense").__enter__()


def test_the_load_balancer_survives_a_service_that_exits_at_once() -> None:
    with LoadBalancer("--command", "sh -c 'echo out of luck; exit 7'", replicas=0) as lb:
        assert lb.call("POST", "/add", {"n": 1}).status == 500
    lb = LoadBalancer("--command", "sh -c 'echo out of luck; exit 7'", replicas=1)
    lb._replicas = 0  # it will never be up
    with lb:
        starts = lb.wait_for("replica down", 3)
        assert "exited with code 7; last output: out of luck" in starts["reason"]
        assert "out of luck" in lb.state()["Server-1"]["reason"]
        assert lb.state()["Server-1"]["restarts"] >= 2
        assert lb.call("GET", "/home").status == 503


# -- its own pages ------------------------------------------------------------------------------------


def test_health_state_metrics_and_openapi(lb: LoadBalancer) -> None:
    assert lb.call("GET", "/lb/health").json == {"message": "serving", "status": "successful"}
    lb.call("GET", "/home")
    lb.call("GET", "/other")
    answer = lb.call("GET", "/lb/replicas").json
    assert answer["status"] == "successful"
    assert answer["message"]["desired"] == 3
    one = answer["message"]["replicas"][0]
    assert list(one) == [
        "hostname", "number", "state", "address", "id", "in_flight", "missed", "restarts", "since", "reason",
    ]  # fmt: skip
    metrics = lb.call("GET", "/lb/metrics").body.decode()
    assert 'lb_replicas{state="up"} 3.0' in metrics
    assert "lb_request_duration_seconds_count 2.0" in metrics
    counts = [line for line in metrics.splitlines() if line.startswith("lb_requests_total{")]
    assert sum(float(line.split()[-1]) for line in counts if 'status="200"' in line) == 1
    assert sum(float(line.split()[-1]) for line in counts if 'status="400"' in line) == 1
    for name in ("lb_requests_in_flight", "lb_heartbeats_missed_total", "lb_replacements_total"):
        assert f"\n{name} 0.0" in metrics
    openapi = lb.call("GET", "/lb/openapi.json").json
    assert openapi["openapi"].startswith("3.")
    assert {"/rep", "/add", "/rm", "/lb/health", "/lb/replicas"} <= set(openapi["paths"])


def test_requests_wait_for_the_first_replica_for_a_limited_time() -> None:
    slow_to_start = "sh -c 'sleep 0.7; exec python -m server'"
    lb = LoadBalancer("--command", slow_to_start, replicas=1)
    lb._replicas = 0  # do not wait for it
    with lb:
        assert lb.call("GET", "/home").status == 200, "it has waited"
    never = LoadBalancer("--command", "sleep 60", "--queue-timeout", "0.3", "--queue-size", "1", replicas=1)
    never._replicas = 0
    with never, ThreadPoolExecutor() as pool:
        replies = [asking.result() for asking in [pool.submit(never.call, "GET", "/home") for _ in range(3)]]
        assert [reply.status for reply in replies] == [503] * 3
        assert {reply.headers["Retry-After"] for reply in replies} == {"1"}
        messages = {reply.json["message"] for reply in replies}
        assert messages == {
            "<Error> no replica is in rotation: try again in a moment",
            "<Error> no replica is in rotation, and 1 requests wait for one",
        }


def test_a_replica_that_fails_requests_in_a_row_is_ejected() -> None:
    failing = 'case "$HOSTNAME" in Server-1) export FAIL=1;; esac; exec python'
    command = f"sh -c '{failing} {replica('odd').removeprefix('python ')}'"
    with LoadBalancer("--command", command, "--eject-time", "0.5", "--policy", "round-robin") as lb:
        statuses = [lb.call("GET", "/maybe").status for _ in range(30)]
        assert statuses.count(500) == 5
        assert lb.state()["Server-1"]["state"] == "down"
        assert lb.state()["Server-1"]["reason"] == "ejected for 0.5 s after 5 failed requests in a row"
        lb.wait_for("replica readmitted", replica="Server-1")
        assert lb.state()["Server-1"]["restarts"] == 0


def test_requests_with_small_bodies_are_retried_and_posts_are_not() -> None:
    dying = 'case "$HOSTNAME" in Server-1) export DIE=1;; esac; exec python'
    command = f"sh -c '{dying} {replica('odd').removeprefix('python ')}'"
    options = ("--policy", "round-robin", "--eject-after", "0")
    with LoadBalancer("--command", command, *options, replicas=2) as lb:
        replies = [lb.call("PUT", "/maybe", b"x" * 1000) for _ in range(6)]
        assert [reply.status for reply in replies] == [200] * 6
        assert {reply.json["length"] for reply in replies} == {1000}
        statuses = Counter(lb.call("POST", "/maybe", b"x").status for _ in range(6))
        assert statuses[502] >= 2, "it may have been done already"
        assert statuses[200] >= 2


async def test_the_event_stream_reports_a_replacement(lb: LoadBalancer) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{lb.port}/lb/events") as stream,
    ):
        assert stream.content_type == "text/event-stream"
        assert (await stream.content.readline()) == b"event: fleet\n"
        first = json.loads((await stream.content.readline()).removeprefix(b"data: "))
        assert first["desired"] == 3
        os.kill(await asyncio.to_thread(lb.pid, "Server-1"), signal.SIGKILL)
        seen: list[str] = []
        async with asyncio.timeout(20):
            while seen[-1:] != ["up"]:
                line = await stream.content.readline()
                if line.startswith(b"data: "):
                    event = json.loads(line.removeprefix(b"data: "))
                    assert event["replica"] == "Server-1"
                    if event["event"] not in ("missed", "explained"):
                        seen.append(event["event"])
    assert seen == ["down", "starting", "up"]


def test_the_admin_token_guards_changes_and_pages_but_not_health() -> None:
    with LoadBalancer(replicas=1, env={"LB_ADMIN_TOKEN": "sesame"}) as lb:
        for method, path in [
            ("POST", "/add"),
            ("DELETE", "/rm"),
            ("GET", "/lb/replicas"),
            ("GET", "/lb/metrics"),
        ]:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic sesame"}):
                refused = lb.call(method, path, {"n": 1}, headers)
                assert refused.status == 401
                assert refused.headers["WWW-Authenticate"] == "Bearer"
                assert refused.json["status"] == "failure"
        assert lb.call("GET", "/lb/health").status == lb.call("GET", "/rep").status == 200
        assert lb.call("GET", "/home").status == 200
        assert lb.call("POST", "/add", {"n": 1}, {"Authorization": "bearer sesame"}).status == 200
        assert "sesame" not in json.dumps(lb.records)
