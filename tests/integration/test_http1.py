"""HTTP/1.1 as the fast lane speaks it with clients (RFC 9110, RFC 9112): each request has one reading."""

import json
import re
import socket
import time
from collections.abc import Iterator

import pytest

from tests.harness import LoadBalancer, eventually, replica

GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def lb() -> Iterator[LoadBalancer]:
    with LoadBalancer("--command", replica("odd"), "--load-factor", "0", replicas=1) as running:
        yield running


def talk(lb: LoadBalancer, *parts: bytes) -> bytes:
    """Send the parts one after the other, and read until the other side closes."""
    with socket.create_connection(("127.0.0.1", lb.port), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            connection.sendall(part)
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
        return received


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", answers)]


def targets(answers: bytes) -> list[str]:
    return re.findall(r'"target": "([^"]*)"', answers.decode("latin-1"))


def test_pipelined_requests_are_answered_in_order(lb: LoadBalancer) -> None:
    many = b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(50))
    answers = talk(lb, many + LAST)
    assert targets(answers) == [*(f"/{number}" for number in range(50)), "/last"]


def test_a_slow_answer_holds_those_behind_it_back(lb: LoadBalancer) -> None:
    slow = b"GET /slow?seconds=0.3 HTTP/1.1\r\nHost: x\r\n\r\n"
    answers = talk(lb, slow + GET + LAST)
    assert answers.index(b"at last") < answers.index(b'"target": "/x"') < answers.index(b'"target": "/last"')


def test_pipelined_bodies_go_to_their_own_requests(lb: LoadBalancer) -> None:
    posts = b"".join(
        b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (n, n, b"x" * n)
        for n in range(1, 9)
    )
    chunked = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    answers = talk(lb, posts + chunked + LAST).decode()
    assert targets(answers.encode()) == [*(f"/{n}" for n in range(1, 9)), "/c", "/last"]
    assert re.findall(r'"length": (\d+)', answers) == [*map(str, range(1, 9)), "3", "0"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /s?a=b HTTP/1.1\r\nHost: x\r\nX-A: 1\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        b"POST /s?a=b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        b"2\r\nhe\r\n3;ext=1\r\nllo\r\n0\r\nX-Trailer: t\r\n\r\n",
    ],
)
def test_a_request_means_the_same_wherever_it_is_split(lb: LoadBalancer, request_bytes: bytes) -> None:
    readings = set()
    for cut in range(1, len(request_bytes)):
        with socket.create_connection(("127.0.0.1", lb.port), timeout=20) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(request_bytes[:cut])
            time.sleep(0.001)  # so that the parts arrive apart; if they do not, the test is only easier
            connection.sendall(request_bytes[cut:])
            answer = b""
            while piece := connection.recv(1 << 16):
                answer += piece
        facts = json.loads(answer.partition(b"\r\n\r\n")[2])
        readings.add((facts["target"], facts["length"], facts["sha256"]))
    assert len(readings) == 1
    assert readings.pop()[1] == 5


SMUGGLED = {
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n",
    "two equal lengths": b"Content-Length: 5\r\nContent-Length: 5\r\n",
    "a list of lengths": b"Content-Length: 5, 5\r\n",
    "a signed length": b"Content-Length: +5\r\n",
    "a negative length": b"Content-Length: -5\r\n",
    "a hexadecimal length": b"Content-Length: 0x5\r\n",
    "an empty length": b"Content-Length:\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "chunked not last": b"Transfer-Encoding: chunked, identity\r\n",
    "something before chunked": b"Transfer-Encoding: gzip, chunked\r\n",
    "nearly chunked": b"Transfer-Encoding: xchunked\r\n",
    "identity": b"Transfer-Encoding: identity\r\n",
    "chunked with a tab": b"Transfer-Encoding:\x0bchunked\r\n",
    "a bare line feed": b"X-A: 1\nContent-Length: 5\r\n",
    "a folded header": b"X-A: 1\r\n Content-Length: 5\r\n",
    "a space before the colon": b"Content-Length : 5\r\n",
    "a header without a name": b": x\r\n",
    "a NUL in a value": b"X-A: a\x00b\r\n",
    "a control character in a value": b"X-A: a\x01b\r\n",
    "two hosts": b"Host: y\r\n",
    "an odd host": b"X-A: 1\r\nHost: y\r\n",
}


@pytest.mark.parametrize("header", SMUGGLED.values(), ids=SMUGGLED.keys())
def test_what_could_be_read_in_two_ways_is_refused_and_never_passed_on(
    lb: LoadBalancer, header: bytes
) -> None:
    begun = len(lb.call("GET", "/log").json)
    answer = talk(lb, b"POST /smuggled HTTP/1.1\r\nHost: x\r\n" + header + b"\r\nhello" + GET)
    assert statuses(answer)[0] in (400, 501)
    assert len(statuses(answer)) == 1, "and the connection ends"
    assert b"connection: close" in answer
    assert b'"status": "failure"' in answer
    assert len(lb.call("GET", "/log").json) == begun


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET /x HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /x\r\n\r\n", 400),
        (b"GET /x HTTP/0.9\r\nHost: x\r\n\r\n", 400),
        (b"GET /x HTTP/2.0\r\nHost: x\r\n\r\n", 400),
        (b"get /x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /x\x00y HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /x y HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /x#y HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # a TLS hello
        (b"GET /x HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /x HTTP/1.1\r\nHost: x\r\nX-A: " + b"x" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /x HTTP/1.1\r\nHost: x\r\n" + b"X-A: 1\r\n" * 300 + b"\r\n", 431),
        (b"GET /" + b"x" * 400_000, 414),
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_ends(
    lb: LoadBalancer, line: bytes, status: int
) -> None:
    answer = talk(lb, line)
    assert statuses(answer) == [status]
    assert b"connection: close" in answer


@pytest.mark.parametrize(
    "body", [b"5\nhello\r\n", b"zz\r\n", b"fffffffffffffffff\r\n", b"5 \r\nhello\r\n", b"2\r\nabc\r\n"]
)
def test_chunks_that_make_no_sense_break_the_request_off(lb: LoadBalancer, body: bytes) -> None:
    head = b"POST /chunks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = talk(lb, head + body + b"0\r\n\r\n" + GET)
    assert statuses(answer) == [400]


def test_answers_before_nonsense_are_still_given(lb: LoadBalancer) -> None:
    answer = talk(lb, GET + GET + b"NONSENSE\r\n\r\n")
    assert statuses(answer) == [200, 200, 400]


def test_http_1_0_keeps_the_connection_only_when_asked_to(lb: LoadBalancer) -> None:
    once = talk(lb, b"GET /a HTTP/1.0\r\n\r\n")
    assert b"connection: close" in once
    kept = talk(lb, b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", b"GET /b HTTP/1.0\r\n\r\n")
    assert targets(kept) == ["/a", "/b"]
    assert kept.count(b"connection: keep-alive") == 1


def test_http_1_0_clients_get_no_chunks(lb: LoadBalancer) -> None:
    answer = talk(lb, b"GET /trailers HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert b"transfer-encoding" not in answer.lower()
    assert answer.endswith(b"\r\n\r\nhello")


def test_trailers_are_passed_on(lb: LoadBalancer) -> None:
    answer = talk(lb, b"GET /trailers HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.endswith(b"5\r\nhello\r\n0\r\nx-checksum: 5d41\r\n\r\n")


def test_reason_phrases_are_passed_on(lb: LoadBalancer) -> None:
    assert talk(lb, LAST.replace(b"/last", b"/teapot")).startswith(b"HTTP/1.1 418 I'm a teapot\r\n")


def test_a_connection_goes_on_after_every_kind_of_answer(lb: LoadBalancer) -> None:
    paths = [b"/204", b"/304", b"/cookies", b"/trailers", b"/until-close", b"/redirect", b"/x"]
    requests = [b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in paths]
    requests.insert(2, b"HEAD /teapot HTTP/1.1\r\nHost: x\r\n\r\n")
    answers = talk(lb, *requests, LAST)
    assert statuses(answers) == [204, 304, 418, 200, 200, 200, 302, 200, 200]


def test_the_same_request_again_is_answered_the_same(lb: LoadBalancer) -> None:
    answers = talk(lb, *[GET] * 5, LAST)
    bodies = [json.loads(body) for body in re.findall(rb'{"method".*?"Server-1"}', answers)]
    assert len(bodies) == 6
    ids = {dict(map(tuple, body["headers"]))["x-request-id"] for body in bodies}
    assert len(ids) == 6, "each has an id of its own"


def test_an_answer_to_nothing_meets_no_later_request(lb: LoadBalancer) -> None:
    double = b"GET /double HTTP/1.1\r\nHost: x\r\n\r\n"
    answers = talk(lb, *[double, GET] * 4, LAST)
    assert statuses(answers) == [200] * 9
    assert answers.count(b"\r\n\r\none") == 4
    assert b"to nobody" not in answers
    assert targets(answers) == ["/x"] * 4 + ["/last"]


def test_an_early_hint_is_not_taken_for_the_answer_when_it_comes_again(lb: LoadBalancer) -> None:
    hinted = b"GET /early-hints HTTP/1.1\r\nHost: x\r\n\r\n"
    assert statuses(talk(lb, *[hinted] * 4, LAST)) == [103, 200] * 4 + [200]


def test_a_head_that_comes_too_slowly_is_a_408(lb: LoadBalancer) -> None:
    with LoadBalancer("--head-timeout", "0.3", replicas=0) as impatient:
        answer = talk(impatient, b"GET /x HTTP/1.1\r\nHost")
        assert statuses(answer) == [408]


def test_a_silent_connection_is_closed(lb: LoadBalancer) -> None:
    with LoadBalancer("--idle-timeout", "0.3", "--command", replica("odd"), replicas=1) as impatient:
        assert talk(impatient) == b""
        assert statuses(talk(impatient, GET)) == [200], "after an answer too"


def test_a_client_that_sends_its_body_too_slowly_is_let_go(lb: LoadBalancer) -> None:
    with LoadBalancer("--idle-timeout", "0.3", "--command", replica("odd"), replicas=1) as impatient:
        assert talk(impatient, b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc") == b""
        eventually(lambda: impatient.state()["Server-1"]["in_flight"] == 0, "nothing is in flight")


def test_another_protocol_is_tunnelled_with_half_closed_connections(lb: LoadBalancer) -> None:
    with socket.create_connection(("127.0.0.1", lb.port), timeout=20) as connection:
        connection.sendall(
            b"GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly "
        )
        stream = connection.makefile("rb")
        assert stream.readline() == b"HTTP/1.1 101 Switching Protocols\r\n"
        head = [line.lower() for line in iter(stream.readline, b"\r\n")]
        assert b"upgrade: echo\r\n" in head
        assert b"connection: upgrade\r\n" in head
        connection.sendall(b"late")
        connection.shutdown(socket.SHUT_WR)
        assert stream.read() == b"early late, and goodbye"
    eventually(lambda: lb.state()["Server-1"]["in_flight"] == 0, "the tunnel has ended")
