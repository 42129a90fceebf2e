"""The boundaries of the ASGI lane: what clients get wrong, and the answer to it."""

import re
import socket
from collections.abc import Iterator

import pytest

from tests.harness import LoadBalancer
from tests.integration.asgi_boundaries import GET, described, say, seen, serve_scripted, statuses, talk


@pytest.fixture(scope="module")
def lb() -> Iterator[LoadBalancer]:
    yield from serve_scripted()


@pytest.fixture(autouse=True)
def not_ejected(lb: LoadBalancer) -> Iterator[None]:
    """No test has the replica ejected: it is well."""
    yield
    assert lb.state()["Server-1"]["state"] == "up"


# -- requests: one framing, or none (RFC 9112, section 6) -----------------------------------------------

FRAMED_TWICE = {
    "length and chunks (6.1)": b"Content-Length: 40\r\nTransfer-Encoding: chunked\r\n",
    "chunks and length (6.1)": b"Transfer-Encoding: chunked\r\nContent-Length: 40\r\n",
    "two lengths (6.3)": b"Content-Length: 40\r\nContent-Length: 41\r\n",
    "a list of two lengths (6.3)": b"Content-Length: 40, 41\r\n",
    "a signed length (6.2)": b"Content-Length: +40\r\n",
    "another coding (6.1)": b"Transfer-Encoding: gzip, chunked\r\n",
    "chunked twice (6.1)": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "a coding that is none (6.1)": b"Transfer-Encoding: xchunked\r\n",
}


@pytest.mark.parametrize("header", FRAMED_TWICE.values(), ids=FRAMED_TWICE.keys())
def test_a_request_that_is_framed_twice_is_refused_and_never_passed_on(
    lb: LoadBalancer, header: bytes
) -> None:
    before = seen(lb)
    head = b"POST /smuggled HTTP/1.1\r\nHost: x\r\nCookie: secret=1\r\n" + header
    answer = talk(lb, head + b"\r\n5\r\nhello\r\n0\r\n\r\n" + GET)
    assert statuses(answer) in ([400], [501]), "and the connection ends"
    assert b"connection: close" in answer.lower()
    assert b'"status": "failure"' in answer
    assert seen(lb) == before


def test_chunks_in_http_1_0_are_refused(lb: LoadBalancer) -> None:
    """RFC 9112, section 6.1: the framing is faulty, whatever it says."""
    before = seen(lb)
    answer = talk(lb, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    assert statuses(answer) == [400]
    assert seen(lb) == before


@pytest.mark.parametrize(
    "line",
    [
        b"X-A: a\x01b",
        b"X-A: a\x7fb",
        b"X-A: a\x00b",
        b"X-A: a\x0bb",
        b"X-A: a\rb",
        b"X\x01A: b",
        b"X(A: b",
        b": b",
        b"Host: y\x01",
        b"X-A : b",
    ],
)
def test_a_control_character_in_a_header_is_refused(lb: LoadBalancer, line: bytes) -> None:
    """RFC 9110, sections 5.1 and 5.5."""
    before = seen(lb)
    host = b"" if line.startswith(b"Host") else b"Host: x\r\n"
    answer = talk(lb, b"GET /odd HTTP/1.1\r\n" + host + b"Cookie: secret=1\r\n" + line + b"\r\n\r\n" + GET)
    assert statuses(answer) == [400]
    assert b'"status": "failure"' in answer
    assert seen(lb) == before


@pytest.mark.parametrize("target", [b"/a\x01b", b"/a\xffb", b"/?\x7f", b"/a b"])
def test_a_control_character_in_the_target_is_refused(lb: LoadBalancer, target: bytes) -> None:
    """RFC 9112, section 3.2."""
    before = seen(lb)
    assert statuses(talk(lb, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")) == [400]
    assert seen(lb) == before


@pytest.mark.parametrize("host", [b"", b"a b", b"a/b", b"a\tb"])
def test_a_host_that_is_none_is_refused(lb: LoadBalancer, host: bytes) -> None:
    """RFC 9112, section 3.2."""
    assert statuses(talk(lb, b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")) == [400]


def test_a_request_of_http_1_0_without_a_host_is_given_one(lb: LoadBalancer) -> None:
    """RFC 9112, section 3.2: HTTP/1.1 has no request without."""
    facts = described(talk(lb, b"GET / HTTP/1.0\r\n\r\n"))
    assert re.search(r"\r\nhost: 127\.0\.0\.1:\d+\r\n", str(facts["raw"]), re.IGNORECASE)


@pytest.mark.parametrize("target", [b"*", b"http://shop.example"])
def test_options_of_the_server_reach_the_replica(lb: LoadBalancer, target: bytes) -> None:
    """RFC 9112, section 3.2.4."""
    answer = talk(lb, b"OPTIONS " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert described(answer)["line"] == "OPTIONS * HTTP/1.1"


@pytest.mark.parametrize(
    ("method", "status"), [(b"BREW", 200), (b"M-SEARCH", 200), (b"get", 501), (b"Get", 501)]
)
def test_a_method_that_nobody_knows_is_passed_or_not_implemented(
    lb: LoadBalancer, method: bytes, status: int
) -> None:
    """RFC 9110, section 9.1: methods have a case."""
    answer = talk(lb, method + b" /m HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert statuses(answer) == [status]
    if status == 200:
        assert described(answer)["line"] == f"{method.decode()} /m HTTP/1.1"


@pytest.mark.parametrize("body", [b"", b"hello"])
def test_nobody_is_upgraded_to_http_2(lb: LoadBalancer, body: bytes) -> None:
    """RFC 9113, section 3.1: the upgrade is no more; the request is served as it is."""
    head = (
        b"%b / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nContent-Length: %d\r\n\r\n"
    ) % (b"POST" if body else b"GET", len(body))
    answer = talk(lb, head + body + b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert statuses(answer) == [200, 200]
    first = str(described(answer.rpartition(b"HTTP/1.1 200")[0])["raw"]).lower()
    assert "upgrade" not in first
    assert "http2-settings" not in first
    health = head.replace(b" / ", b" /lb/health ").replace(b"POST", b"GET").replace(b"Upgrade,", b"close,")
    assert statuses(talk(lb, health + body)) == [200], "nor on the way to the admin application"


def test_a_websocket_handshake_with_a_body_is_refused(lb: LoadBalancer) -> None:
    """RFC 6455, section 4.1: a GET, after which the protocol begins."""
    before = seen(lb)
    answer = talk(
        lb,
        b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Content-Length: 40\r\n\r\n",
    )
    assert statuses(answer) == [400]
    assert seen(lb) == before


# -- requests whose body is not wanted ------------------------------------------------------------------

UPLOAD = bytes(20_000_000)


@pytest.mark.parametrize("attempt", range(5))
def test_an_early_answer_reaches_a_client_that_sends_all_the_same(lb: LoadBalancer, attempt: int) -> None:
    """RFC 9112, section 9.6: the replica answers and closes, and reads nothing of 20 MB."""
    refusal = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge"
    head = [b"X-When: at-once", b"Content-Length: %d" % len(UPLOAD)]
    with socket.create_connection(("127.0.0.1", lb.port), timeout=20) as connection:
        connection.sendall(say(refusal, *head, method=b"POST"))
        try:
            connection.sendall(UPLOAD)
        except ConnectionError:
            pytest.fail("the answer cannot be read by a client that writes first")
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
    assert statuses(answer) == [413]
    assert answer.endswith(b"large")


def test_a_refusal_of_a_large_head_can_be_read(lb: LoadBalancer) -> None:
    """RFC 9112, section 9.6."""
    answer = talk(lb, b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"x" * 3_000_000)
    assert statuses(answer) in ([400], [431])


@pytest.mark.parametrize("status", [b"401 Unauthorized", b"413 Content Too Large"])
def test_a_body_that_is_not_wanted_is_not_asked_for(lb: LoadBalancer, status: bytes) -> None:
    """RFC 9110, section 10.1.1: the replica refuses at once, and the client need not send anything."""
    refusal = b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nno"
    head = [b"X-When: at-once", b"Content-Length: 1000", b"Expect: 100-continue"]
    answer = talk(lb, say(refusal, *head, method=b"POST").replace(b"Connection: close\r\n", b""))
    assert statuses(answer) == [int(status[:3])], "no 100, and the connection ends"
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize("framing", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_a_body_that_is_wanted_is_asked_for_once(lb: LoadBalancer, framing: bytes) -> None:
    """RFC 9110, section 10.1.1."""
    with socket.create_connection(("127.0.0.1", lb.port), timeout=20) as connection:
        stream = connection.makefile("rwb")
        stream.write(
            b"PUT / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-Continue\r\n"
            + framing
            + b"\r\n\r\n"
        )
        stream.flush()
        assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        stream.write(b"hello" if b"Length" in framing else b"5\r\nhello\r\n0\r\n\r\n")
        stream.flush()
        answer = stream.read()
    assert statuses(answer) == [200]
    facts = described(answer)
    assert facts["length"] == 5
    assert "expect: 100-continue" in str(facts["raw"]).lower()


def test_the_admin_application_asks_for_its_body_too(lb: LoadBalancer) -> None:
    with socket.create_connection(("127.0.0.1", lb.port), timeout=20) as connection:
        stream = connection.makefile("rwb")
        stream.write(
            b"POST /add HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n"
            b"Content-Type: application/json\r\nContent-Length: 8\r\n\r\n"
        )
        stream.flush()
        assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        stream.write(b'{"n": 0}')
        stream.flush()
        assert statuses(stream.read()) == [400]
