"""How connections end (RFC 9112, section 9): half-closed, early, refused, stale, or by a death.

Whoever still listens gets what is owed to it, and nothing is sent twice that may not be.
"""

import http.client
import json
import os
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness import LoadBalancer, replica
from tests.raw import GET, LAST, connect, read_all, read_until, say, statuses, talk, targets

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture(scope="module")
def lb() -> Iterator[LoadBalancer]:
    options = ("--command", replica("odd"), "--max-body", "30000000", "--load-factor", "0")
    with LoadBalancer(*options, replicas=1) as running:
        yield running
    assert not [record for record in running.records if record["event"] == "defect"]


@pytest.fixture(scope="module")
def scripted() -> Iterator[LoadBalancer]:
    options = ("--command", replica("scripted"), "--response-timeout", "0.4", "--load-factor", "0")
    with LoadBalancer(*options, replicas=1) as running:
        yield running
    assert not [record for record in running.records if record["event"] == "defect"]


@pytest.fixture(scope="module")
def pair() -> Iterator[LoadBalancer]:
    """Two replicas, of which each can be told to break off; neither is ejected for it."""
    options = ("--command", replica("odd"), "--policy", "round-robin", "--eject-after", "0")
    with LoadBalancer(*options, replicas=2) as running:
        yield running


# -- a client that sends no more: section 9.6 ---------------------------------------------------------

POST = b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKS = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
SLOW = b"GET /slow?seconds=0.2 HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "count"),
    [(GET, 1), (POST, 1), (CHUNKS, 1), (SLOW, 1), (GET * 5, 5), (POST + SLOW + CHUNKS + GET, 4)],
    ids=["usual", "body", "chunks", "slow", "pipelined", "mixed"],
)
def test_a_client_that_sends_no_more_gets_its_answers(lb: LoadBalancer, data: bytes, count: int) -> None:
    with connect(lb) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert statuses(read_all(connection)) == [200] * count


@pytest.mark.parametrize("data", [GET + GET[:12], GET + POST[:-2]], ids=["half a head", "half a body"])
def test_half_a_request_at_the_end_is_none(lb: LoadBalancer, data: bytes) -> None:
    with connect(lb) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert targets(read_all(connection)) == ["/x"]


# -- early answers and refusals: sections 9.5 and 9.6 ---------------------------------------------------

UPLOAD = bytes(20_000_000)


@pytest.mark.parametrize("attempt", range(5))
def test_an_early_answer_reaches_a_client_that_writes_first(scripted: LoadBalancer, attempt: int) -> None:
    """The replica answers and closes, and reads nothing of 20 MB."""
    refusal = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge"
    lines = (b"X-When: at-once", b"Content-Length: %d" % len(UPLOAD))
    with connect(scripted) as connection:
        connection.sendall(say(refusal, *lines, method=b"POST"))
        connection.sendall(UPLOAD)
        answer = read_all(connection)
    assert statuses(answer) == [413]
    assert answer.endswith(b"\r\n\r\nlarge")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /x HTTP/1.1\r\nHost: x\r\nX-A: ", 431),
        (b"GET /", 414),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 40000000\r\n\r\n", 413),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"FETCH /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n", 501),
    ],
)
def test_a_refusal_can_be_read_by_a_client_that_writes_first(
    lb: LoadBalancer, head: bytes, status: int
) -> None:
    with connect(lb) as connection:
        connection.sendall(head)
        connection.sendall(b"x" * 3_000_000)
        answer = read_all(connection)
    assert statuses(answer) == [status]
    assert b'"status": "failure"' in answer


def test_a_request_without_replicas_can_be_answered_while_its_body_comes() -> None:
    with LoadBalancer("--queue-timeout", "0", replicas=0) as empty, connect(empty) as connection:
        connection.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n")
        connection.sendall(bytes(3_000_000))
        assert statuses(read_all(connection)) == [503]


# -- a replica that ends kept connections: section 9.3.1 ------------------------------------------------


@pytest.mark.parametrize("request_bytes", [GET, GET[:5], POST, POST[:40], CHUNKS])
def test_a_kept_connection_that_ends_costs_no_request(lb: LoadBalancer, request_bytes: bytes) -> None:
    """It ends 0.2 s after an answer, and just then comes the next request: of each of 20 clients."""
    whole = next(one for one in (GET, POST, CHUNKS) if one.startswith(request_bytes))

    def ask(number: int) -> list[int]:
        with connect(lb) as connection:
            connection.sendall(GET.replace(b"/x", b"/closing"))
            answers = read_until(connection, b"}")
            time.sleep(0.19 + number * 0.001)  # the moment is what is tested
            connection.sendall(request_bytes)
            connection.sendall(whole[len(request_bytes) :])
            connection.shutdown(socket.SHUT_WR)
            return statuses(answers + read_all(connection))

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(ask, range(20))) == [[200, 200]] * 20


def test_a_408_on_a_kept_connection_answers_nothing(scripted: LoadBalancer) -> None:
    """RFC 9110, section 15.5.9: it tells that the idle connection ends."""
    timed_out = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with connect(scripted) as connection:
        connection.sendall(say(OK, b"X-Later: " + timed_out.hex().encode(), b"X-Then: close", close=False))
        answers = read_until(connection, b"\r\n\r\nok")
        deadline = time.monotonic() + 0.4
        while time.monotonic() < deadline:
            connection.sendall(GET)
            answers += read_until(connection, b"}")
    assert set(statuses(answers)) == {200}


# -- a replica that dies in the middle ----------------------------------------------------------------


@pytest.mark.parametrize("how", [b"in one packet", b"in parts"])
def test_a_short_answer_that_breaks_off_is_asked_for_elsewhere(pair: LoadBalancer, how: bytes) -> None:
    request = b"GET /half-on?name=Server-1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    parts = [request] if how == b"in one packet" else [request[:20], request[20:]]
    for _ in range(6):
        answer = talk(pair, *parts)
        assert statuses(answer) == [200]
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["hostname"] == "Server-2"


def test_what_may_not_be_done_twice_is_not_asked_for_elsewhere(pair: LoadBalancer) -> None:
    """RFC 9110, section 9.2.2."""
    post = (
        b"POST /half-on?name=Server-1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    assert sorted(statuses(talk(pair, post))[0] for _ in range(6)) == [200] * 3 + [502] * 3


def test_a_long_answer_that_breaks_off_breaks_off_for_the_client(lb: LoadBalancer) -> None:
    with pytest.raises(http.client.IncompleteRead):
        lb.call("GET", "/half-chunk")


def test_all_who_wait_for_a_replica_that_hangs_move_on_when_it_is_known_dead() -> None:
    """300 clients, of whom half are sent to a stopped process: connections to it hang."""
    beats = ("--heartbeat-interval", "0.3", "--heartbeat-timeout", "0.3", "--stop-timeout", "0.3")
    options = ("--policy", "round-robin", "--connect-timeout", "60", "--command", replica("odd"))
    with LoadBalancer(*beats, *options, replicas=2) as lb:
        stopped = lb.pid("Server-1")
        mark = lb.mark()
        host, _, port = lb.state()["Server-1"]["address"].partition(":")
        urllib.request.urlopen(f"http://{host}:{port}/narrow", timeout=20).close()
        os.kill(stopped, signal.SIGSTOP)
        connections = [connect(lb, 30) for _ in range(300)]
        for connection in connections:
            connection.sendall(LAST)
        lb.wait_for("replica down", after=mark, replica="Server-1")
        began = time.monotonic()
        answers = [read_all(connection) for connection in connections]
        took = time.monotonic() - began
        for connection in connections:
            connection.close()
    assert [statuses(answer) for answer in answers] == [[200]] * 300
    assert took < 10, "and not one after the other"


# -- streams that may be silent -------------------------------------------------------------------------


@pytest.mark.parametrize("media_type", [b"text/event-stream", b"TEXT/Event-Stream; charset=utf-8"])
@pytest.mark.parametrize("framing", [b"", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 300\r\n"])
def test_an_event_stream_is_never_cut_for_silence(
    scripted: LoadBalancer, media_type: bytes, framing: bytes
) -> None:
    """Three times as silent as `--response-timeout` allows to others (RFC 9110, section 8.3.1)."""
    assert silence(scripted, media_type, framing) > 1.0


def test_any_other_answer_is_cut_for_silence(scripted: LoadBalancer) -> None:
    assert 0.3 < silence(scripted, b"text/plain", b"Content-Length: 300\r\n") < 1.0


def silence(lb: LoadBalancer, media_type: bytes, framing: bytes) -> float:
    """Seconds until an answer ends that the replica begins, and ends 1.2 s later."""
    begun = b"5\r\ndata:\r\n" if b"chunked" in framing else b"data:"
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n%b\r\n%b" % (media_type, framing, begun)
    with connect(lb) as connection:
        connection.sendall(say(answer, b"X-Then: 1.2"))
        read_until(connection, b"data:")
        began = time.monotonic()
        wait_for_end(lambda: connection.recv(1 << 16))
        return time.monotonic() - began


def wait_for_end(receive: Callable[[], bytes]) -> None:
    try:
        while receive():
            pass
    except ConnectionResetError:
        return


def test_a_stream_that_its_client_has_left_is_ended(lb: LoadBalancer) -> None:
    with connect(lb) as connection:
        connection.sendall(b"GET /events?id=left HTTP/1.1\r\nHost: x\r\n\r\n")
        read_until(connection, b"data: tick")
        connection.shutdown(socket.SHUT_WR)
        wait_for_end(lambda: connection.recv(1 << 16))
    assert re.search(r"/events left alone left", json.dumps(lb.call("GET", "/log").json))
