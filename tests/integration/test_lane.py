"""What a proxy owes both sides of an exchange, seen from outside: a real load balancer, odd replicas."""

import gzip
import hashlib
import http.client
import json
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import LoadBalancer, Reply, eventually, replica

GIBIBYTE = 1 << 30
PIECE = bytes(1 << 18)


@pytest.fixture(scope="module", params=["fast", "asgi"])
def lane(request: pytest.FixtureRequest) -> str:
    """Every case is one of both lanes."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def lb(lane: str) -> Iterator[LoadBalancer]:
    options = ("--command", replica("odd"), "--response-timeout", "0.5", "--load-factor", "0")
    with LoadBalancer("--lane", lane, *options, replicas=1) as running:
        yield running


def raw(lb: LoadBalancer, data: bytes) -> bytes:
    """Send bytes as they are, and read until the other side closes."""
    with socket.create_connection(("127.0.0.1", lb.port), timeout=20) as connection:
        connection.sendall(data)
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
        return received


def log(lb: LoadBalancer) -> list[str]:
    """What the replica has noted."""
    noted: list[str] = lb.call("GET", "/log").json
    return noted


def sent(reply: Reply) -> list[tuple[str, str]]:
    """The headers that the replica got."""
    return [(name.lower(), value) for name, value in reply.json["headers"]]


# -- the request --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_every_method_reaches_the_replica(lb: LoadBalancer, method: str) -> None:
    assert lb.call(method, "/any").json["method"] == method


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/a%2Fb%20c?x=%26&y=+&z",
        "/a//b/../c",
        "/%E2%82%AC?q=%E2%82%AC",
        "/reply",
        "/add/more",
        "/lbx",
        "//x",
    ],
)
def test_the_target_is_passed_as_it_came(lb: LoadBalancer, target: str) -> None:
    assert lb.call("GET", target).json["target"] == target


def test_host_is_kept_and_forwarding_is_told(lb: LoadBalancer) -> None:
    headers = dict(sent(lb.call("GET", "/", headers={"Host": "shop.example:81"})))
    assert headers["host"] == headers["x-forwarded-host"] == "shop.example:81"
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"
    assert re.fullmatch(r"[0-9a-f]{32}", headers["x-request-id"])


def test_hop_by_hop_headers_of_a_request_end_here(lb: LoadBalancer) -> None:
    given = {
        "Connection": "X-Secret-Hop",
        "X-Secret-Hop": "1",
        "Keep-Alive": "timeout=9",
        "TE": "trailers",
        "HTTP2-Settings": "AAM",
        "Proxy-Authorization": "Basic eA==",
        "X-Kept": "2",
    }
    headers = dict(sent(lb.call("GET", "/", headers=given)))
    assert headers["x-kept"] == "2"
    assert headers["proxy-authorization"] == "Basic eA==", "for a forward proxy (RFC 9110, section 11.7)"
    assert headers.keys() & {"connection", "x-secret-hop", "keep-alive", "te", "http2-settings"} == set()


def test_repeated_headers_stay_apart_and_in_order(lb: LoadBalancer) -> None:
    answer = raw(
        lb, b"GET / HTTP/1.1\r\nHost: x\r\nX-Many: 1\r\nX-Many: 2\r\nCookie: a=1\r\nConnection: close\r\n\r\n"
    )
    headers = json.loads(answer.partition(b"\r\n\r\n")[2])["headers"]
    assert [value for name, value in headers if name.lower() == "x-many"] == ["1", "2"]


def test_nothing_is_invented_for_the_client(lb: LoadBalancer) -> None:
    answer = raw(lb, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    names = {name.lower() for name, _ in json.loads(answer.partition(b"\r\n\r\n")[2])["headers"]}
    assert names == {"host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id"}


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_a_body_arrives_whole(lb: LoadBalancer, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    facts = lb.call("POST", "/", body[:size]).json
    assert (facts["length"], facts["sha256"]) == (size, hashlib.sha256(body[:size]).hexdigest())


def test_a_length_stays_a_length_and_chunks_stay_chunks(lb: LoadBalancer) -> None:
    assert ("content-length", "3") in sent(lb.call("POST", "/", b"abc"))
    chunked = raw(
        lb,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    )
    facts = json.loads(chunked.partition(b"\r\n\r\n")[2])
    names = {name.lower() for name, _ in facts["headers"]}
    assert facts["length"] == 5
    assert "transfer-encoding" in names
    assert "content-length" not in names


def test_expect_100_continue_is_answered_before_the_body_is_sent(lb: LoadBalancer) -> None:
    with socket.create_connection(("127.0.0.1", lb.port), timeout=20) as connection:
        connection.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n"
            b"Connection: close\r\n\r\n"
        )
        stream = connection.makefile("rb")
        assert stream.readline().startswith(b"HTTP/1.1 100")
        connection.sendall(b"abc")
        assert b'"length": 3' in stream.read()


def test_an_absolute_target_is_taken_by_its_own_host(lb: LoadBalancer) -> None:
    answer = raw(lb, b"GET http://shop.example/a?b=1 HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n")
    facts = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert facts["target"] == "/a?b=1"
    assert ["host", "shop.example"] in [[name.lower(), value] for name, value in facts["headers"]]


@pytest.mark.parametrize(
    ("request_line", "status"),
    [(b"CONNECT x:443 HTTP/1.1", b"501"), (b"GET ftp://x/ HTTP/1.1", b"400"), (b"GET * HTTP/1.1", b"400")],
)
def test_targets_that_no_replica_can_answer_are_refused(
    lb: LoadBalancer, request_line: bytes, status: bytes
) -> None:
    answer = raw(lb, request_line + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b'"status": "failure"' in answer


def test_http_1_0_clients_are_served(lb: LoadBalancer) -> None:
    answer = raw(lb, b"GET /until-close HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.")
    assert answer.endswith(b"\r\n\r\nuntil the end")


def test_connections_to_replicas_are_reused(lb: LoadBalancer) -> None:
    assert len({lb.call("GET", "/").json["connection"] for _ in range(20)}) == 1


# -- the answer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "status"), [("/teapot", 418), ("/503", 503), ("/redirect", 302)])
def test_the_status_is_the_replicas(lb: LoadBalancer, path: str, status: int) -> None:
    assert lb.call("GET", path).status == status


def test_redirects_are_passed_and_not_followed(lb: LoadBalancer) -> None:
    assert lb.call("GET", "/redirect").headers["Location"] == "http://elsewhere.example/there?a=1"


def test_repeated_headers_of_an_answer_stay_apart(lb: LoadBalancer) -> None:
    headers = lb.call("GET", "/cookies").headers
    assert headers.get_all("Set-Cookie") == ["a=1; Path=/", "b=2"]
    assert headers.get_all("X-A") == ["1", "2"]


def test_compressed_bodies_are_passed_untouched(lb: LoadBalancer) -> None:
    reply = lb.call("GET", "/gzip")
    assert reply.headers["Content-Encoding"] == "gzip"
    assert reply.body == gzip.compress(b"hello" * 100, mtime=0)


def test_hop_by_hop_headers_of_an_answer_end_here(lb: LoadBalancer) -> None:
    headers = lb.call("GET", "/hops").headers
    assert headers["X-End"] == "2"
    assert {"x-hop", "keep-alive", "connection"} & {name.lower() for name in headers} == set()


def test_an_answer_keeps_its_own_date_and_server(lb: LoadBalancer) -> None:
    headers = lb.call("GET", "/own").headers
    assert headers.get_all("Server") == ["odd/1.0"]
    assert headers.get_all("Date") == ["Thu, 01 Jan 1970 00:00:00 GMT"]


@pytest.mark.parametrize(("path", "status"), [("/204", 204), ("/304", 304)])
def test_answers_without_a_body_have_none(lb: LoadBalancer, path: str, status: int) -> None:
    answer = raw(lb, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status}".encode())
    assert rest == b""


def test_the_answer_to_head_has_a_length_but_no_body(lb: LoadBalancer) -> None:
    answer = raw(lb, b"HEAD /teapot HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert b"content-length: 15" in head.lower()
    assert rest == b""


@pytest.mark.parametrize(
    ("path", "body"),
    [("/until-close", b"until the end"), ("/trailers", b"hello")],
)
def test_every_framing_of_a_body_is_understood(lb: LoadBalancer, path: str, body: bytes) -> None:
    reply = lb.call("GET", path)
    assert (reply.status, reply.body) == (200, body)


def test_an_answer_before_the_answer_is_no_answer(lb: LoadBalancer, lane: str) -> None:
    answer = raw(lb, b"GET /early-hints HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    if lane == "fast":
        hints, _, answer = answer.partition(b"\r\n\r\n")
        assert hints == b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>"
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\nlate")


def test_an_answer_may_come_before_the_request_has_ended(lb: LoadBalancer) -> None:
    reply = lb.call("POST", "/early", bytes(100_000))
    assert (reply.status, reply.body) == (413, b"too large")


def test_events_arrive_as_they_are_sent_however_long_the_pause(lb: LoadBalancer) -> None:
    with socket.create_connection(("127.0.0.1", lb.port), timeout=20) as connection:
        connection.sendall(b"GET /events?id=7 HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while b"data: tick\n\n" not in received:
            received += connection.recv(1 << 16)
        connection.settimeout(1)  # twice the response time-out: a stream of events may be silent
        with pytest.raises(TimeoutError):
            connection.recv(1)
    eventually(lambda: "/events left alone 7" in log(lb), "the replica is told that the client has gone")


# -- what goes wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/garbage", "/nothing", "/half-head"])
def test_an_answer_that_never_properly_begins_is_a_502(lb: LoadBalancer, path: str) -> None:
    reply = lb.call("GET", path)
    assert reply.status == 502
    assert reply.json["status"] == "failure"
    assert reply.json["message"].startswith("<Error> Server-1 ")
    assert lb.call("GET", "/").status == 200, "and the next request is none the worse for it"


def test_an_answer_that_breaks_off_breaks_off_for_the_client_too(lb: LoadBalancer) -> None:
    with pytest.raises(http.client.IncompleteRead):
        lb.call("GET", "/half-chunk")


def test_a_short_answer_that_breaks_off_is_a_502(lb: LoadBalancer, lane: str) -> None:
    if lane == "asgi":  # it passes on what it has
        with pytest.raises(http.client.IncompleteRead):
            lb.call("GET", "/half")
    else:
        assert lb.call("GET", "/half").status == 502


def test_no_answer_in_time_is_a_504(lb: LoadBalancer) -> None:
    reply = lb.call("GET", "/hang?id=504")
    assert reply.status == 504
    assert reply.json == {"message": "<Error> Server-1 did not answer within 0.5 s", "status": "failure"}
    eventually(lambda: "/hang left alone 504" in log(lb), "the replica is told")


def test_an_answer_that_stalls_breaks_off(lb: LoadBalancer) -> None:
    with pytest.raises(http.client.IncompleteRead):
        lb.call("GET", "/stall")


def test_a_client_that_goes_away_ends_the_exchange_with_the_replica(lane: str) -> None:
    with LoadBalancer("--lane", lane, "--command", replica("odd"), replicas=1) as patient:
        with socket.create_connection(("127.0.0.1", patient.port)) as connection:
            connection.sendall(b"GET /hang?id=gone HTTP/1.1\r\nHost: x\r\n\r\n")
            eventually(lambda: "/hang begun" in log(patient), "the request reaches the replica")
            # A mere close looks like that of a client that sends no more and waits (RFC 9112, section 9.6).
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        eventually(lambda: "/hang left alone gone" in log(patient), "the replica is told")
        eventually(lambda: patient.state()["Server-1"]["in_flight"] == 0, "nothing is in flight any more")


def test_a_client_that_goes_away_in_the_middle_of_its_body_is_told_of(lb: LoadBalancer) -> None:
    with socket.create_connection(("127.0.0.1", lb.port)) as connection:
        connection.sendall(
            b"POST /broken-upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nonly this"
        )
    eventually(lambda: "/broken-upload broke off" in log(lb), "the replica sees the end")


# -- size ---------------------------------------------------------------------------------------------


def peak_memory(lb: LoadBalancer) -> int:
    """The most memory that the load balancer has ever used, in MiB."""
    status = Path(f"/proc/{lb.process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) >> 10


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_gibibyte_passes_both_ways_in_little_memory(lb: LoadBalancer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", lb.port, timeout=60)
    connection.request(
        "PUT", "/", (PIECE for _ in range(GIBIBYTE // len(PIECE))), {"Content-Length": str(GIBIBYTE)}
    )
    facts: dict[str, Any] = json.load(connection.getresponse())
    assert facts["length"] == GIBIBYTE
    connection.request("GET", f"/download?bytes={GIBIBYTE}")
    answer, received = connection.getresponse(), 0
    while piece := answer.read(1 << 20):
        received += len(piece)
    connection.close()
    assert received == GIBIBYTE
    assert peak_memory(lb) < 150
