"""Other protocols behind an upgrade (RFC 9110, section 7.8): who gets a tunnel, and how long it lives."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness import LoadBalancer, eventually, replica
from tests.raw import GET, LAST, connect, read_all, read_until, say, statuses, talk

UPGRADE = b"GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n"
GOODBYE = b", and goodbye"


@pytest.fixture(scope="module")
def lb() -> Iterator[LoadBalancer]:
    """Its replica switches to an echo at `/upgrade`, whatever it is asked."""
    with LoadBalancer("--command", replica("odd"), "--load-factor", "0", replicas=1) as running:
        yield running
    assert not [record for record in running.records if record["event"] == "defect"]


@pytest.fixture(scope="module")
def scripted() -> Iterator[LoadBalancer]:
    with LoadBalancer("--command", replica("scripted"), replicas=1) as running:
        yield running


def tunnel(lb: LoadBalancer) -> socket.socket:
    """A connection that speaks the echo protocol."""
    connection = connect(lb)
    connection.sendall(UPGRADE)
    assert statuses(read_until(connection, b"\r\n\r\n")) == [101]
    return connection


def echoes(connection: socket.socket, data: bytes = b"ping") -> bool:
    connection.sendall(data)
    return read_until(connection, data) == data


# -- who gets one -------------------------------------------------------------------------------------


def test_a_switch_has_no_framing(lb: LoadBalancer) -> None:
    """RFC 9112, section 6.1."""
    with connect(lb) as connection:
        connection.sendall(UPGRADE)
        head = read_until(connection, b"\r\n\r\n").lower()
    assert head.startswith(b"http/1.1 101 switching protocols\r\n")
    assert b"transfer-encoding" not in head
    assert b"content-length" not in head
    assert b"\r\nconnection: upgrade\r\n" in head
    assert b"\r\nupgrade: echo\r\n" in head


@pytest.mark.parametrize("target", [b"/x", b"/lb/health"])
@pytest.mark.parametrize(("method", "body"), [(b"GET", b""), (b"POST", b"hello")])
def test_http_2_is_not_spoken_by_an_upgrade(
    lb: LoadBalancer, target: bytes, method: bytes, body: bytes
) -> None:
    """RFC 9113, section 3.1: obsolete, so it is served as HTTP/1.1, and what follows is a request."""
    length = b"Content-Length: %d\r\n" % len(body)
    request = b"%b %b HTTP/1.1\r\nHost: x\r\n%b%b\r\n%b" % (method, target, H2C, length, body)
    answers = talk(lb, request + LAST)
    served = 405 if method == b"POST" and target == b"/lb/health" else 200
    assert statuses(answers) == [served, 200]
    if target == b"/x":
        facts = json.loads(answers.partition(b"\r\n\r\n")[2].partition(b"HTTP/1.1 200")[0])
        names = {name.lower() for name, _ in facts["headers"]}
        assert names & {"upgrade", "connection", "http2-settings"} == set()
        assert facts["length"] == len(body)


def test_a_switch_that_nobody_asked_for_is_a_502(lb: LoadBalancer) -> None:
    """RFC 9110, section 15.2.2: what follows is a request, and no tunnel."""
    answers = talk(lb, GET.replace(b"/x", b"/upgrade") + LAST)
    assert statuses(answers) == [502, 200]
    assert lb.state()["Server-1"]["state"] == "up"


@pytest.mark.parametrize("agreed", [b"other", b"h2c", b"echo, other"])
def test_a_switch_to_something_else_is_a_502(scripted: LoadBalancer, agreed: bytes) -> None:
    request = say(SWITCH % agreed, b"Connection: Upgrade", b"Upgrade: echo", close=False)
    assert statuses(talk(scripted, request + LAST)) == [502, 200]


@pytest.mark.parametrize("status", [b"200 OK", b"426 Upgrade Required"])
def test_an_upgrade_that_is_not_agreed_to_is_answered_like_any_request(
    scripted: LoadBalancer, status: bytes
) -> None:
    answer = b"HTTP/1.1 %b\r\nUpgrade: other\r\nContent-Length: 2\r\n\r\nno" % status
    answers = talk(scripted, say(answer, b"Connection: Upgrade", b"Upgrade: echo", close=False) + LAST)
    assert statuses(answers) == [int(status[:3]), 200]


def test_early_bytes_of_the_other_protocol_are_not_read_as_a_request(lb: LoadBalancer) -> None:
    with connect(lb) as connection:
        connection.sendall(UPGRADE + GET)
        connection.sendall(LAST)
        connection.shutdown(socket.SHUT_WR)
        _, _, echoed = read_all(connection).partition(b"\r\n\r\n")
    assert echoed == GET + LAST + GOODBYE


def test_many_tunnels_do_not_meet(lb: LoadBalancer) -> None:
    tunnels = [tunnel(lb) for _ in range(30)]
    for number, connection in enumerate(tunnels):
        connection.sendall(b"I am %d." % number)
    for number, connection in enumerate(tunnels):
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b"I am %d." % number + GOODBYE
        connection.close()
    eventually(lambda: lb.state()["Server-1"]["in_flight"] == 0, "they have all ended")


# -- how long it lives ----------------------------------------------------------------------------------


def test_a_tunnel_that_met_back_pressure_outlives_the_idle_time_out() -> None:
    options = ("--idle-timeout", "0.4", "--response-timeout", "0.4", "--head-timeout", "0.4")
    with LoadBalancer("--command", replica("odd"), *options, replicas=1) as lb, tunnel(lb) as connection:
        connection.settimeout(0.3)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 1 << 30:  # until nobody takes more, because nobody reads
                sent += connection.send(bytes(1 << 16))
        assert sent < 1 << 30, "every buffer on the way is full"
        connection.settimeout(20)
        received = 0
        while received < sent:
            received += len(connection.recv(1 << 20))
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            assert echoes(connection)
        connection.settimeout(1.0)
        with pytest.raises(TimeoutError):  # it may be silent, too
            connection.recv(1)
        connection.settimeout(20)
        assert echoes(connection)


def test_a_silent_tunnel_ends_when_that_is_wanted() -> None:
    options = ("--tunnel-idle-timeout", "0.5", "--command", replica("odd"))
    with LoadBalancer(*options, replicas=1) as lb, tunnel(lb) as connection:
        began = time.monotonic()
        while time.monotonic() - began < 1.0:
            assert echoes(connection), "bytes keep it open"
        with pytest.raises((ConnectionResetError, AssertionError)):
            read_until(connection, b"nothing comes")
        eventually(lambda: lb.state()["Server-1"]["in_flight"] == 0, "the replica's end has ended too")


def test_stopping_leaves_a_tunnel_the_drain_time() -> None:
    options = ("--command", replica("odd"), "--drain-timeout", "20")
    with LoadBalancer(*options, replicas=1) as lb:
        connection = tunnel(lb)
        lb.process.terminate()
        lb.wait_for("stopping")
        eventually(lambda: not accepts(lb), "no more clients are taken")
        assert echoes(connection)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == GOODBYE
        connection.close()
        began = time.monotonic()
        assert lb.process.wait(20) == 0
        assert time.monotonic() - began < 10, "nothing is left to wait for"


def test_stopping_cuts_a_tunnel_after_the_drain_time() -> None:
    options = ("--command", replica("odd"), "--drain-timeout", "0.5")
    with LoadBalancer(*options, replicas=1) as lb, tunnel(lb) as connection:
        assert lb.stop() == 0
        with pytest.raises((ConnectionResetError, AssertionError)):
            read_until(connection, b"nothing comes")


def test_removing_its_replica_leaves_a_tunnel_the_drain_time() -> None:
    options = ("--command", replica("odd"), "--drain-timeout", "20")
    with LoadBalancer(*options, replicas=2) as lb:
        connection = tunnel(lb)
        [name] = [name for name, one in lb.state().items() if one["in_flight"]]
        with ThreadPoolExecutor() as pool:
            removing = pool.submit(lb.call, "DELETE", "/rm", {"n": 1, "replicas": [name]})
            eventually(lambda: lb.state().get(name, {}).get("state") != "up", "it is on its way out")
            assert echoes(connection)
            connection.shutdown(socket.SHUT_WR)
            assert read_all(connection) == GOODBYE
            connection.close()
            assert removing.result(10).status == 200, "nothing is left to wait for"


def accepts(lb: LoadBalancer) -> bool:
    try:
        socket.create_connection(("127.0.0.1", lb.port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True
