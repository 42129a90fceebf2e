"""The boundaries of the ASGI lane: what replicas get wrong, and what the client gets."""

import re
import socket
import time
from collections.abc import Iterator

import pytest

from tests.harness import LoadBalancer
from tests.integration.asgi_boundaries import GET, say, serve_scripted, statuses, talk


@pytest.fixture(scope="module")
def lb() -> Iterator[LoadBalancer]:
    yield from serve_scripted()


@pytest.fixture(autouse=True)
def not_ejected(lb: LoadBalancer) -> Iterator[None]:
    """No test has the replica ejected: it is well."""
    yield
    assert lb.state()["Server-1"]["state"] == "up"


# -- answers ----------------------------------------------------------------------------------------------

CHUNKS = b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 99\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 2",
        b"Content-Length: 1\r\nTransfer-Encoding: Chunked\r\ncontent-length: 2",
    ],
)
def test_of_an_answer_that_is_framed_twice_the_chunks_count(lb: LoadBalancer, framing: bytes) -> None:
    """RFC 9112, section 6.3; the connection is not used again, and nobody is ejected for it."""
    answer = b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n" + CHUNKS
    for _ in range(10):
        got = talk(lb, say(answer))
        assert statuses(got) == [200]
        assert b"content-length" not in got.lower()
        assert got.endswith((CHUNKS, b"5\r\nabcde\r\n0\r\n\r\n"))


def test_an_answer_with_two_lengths_ejects_nobody(lb: LoadBalancer) -> None:
    """RFC 9112, section 6.3: it cannot be recovered."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"
    for _ in range(10):
        assert statuses(talk(lb, say(answer))) == [502]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nX-A: a\x01b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX-A: a\x00b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX-A: a\x0bsecret\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX\x01A: secret\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tunnel\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 000 None\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 099 None\r\nContent-Length: 2\r\n\r\nok",
    ],
)
def test_an_answer_that_makes_no_sense_is_a_502(lb: LoadBalancer, answer: bytes) -> None:
    """RFC 9110, sections 5.5, 15 and 15.2.2."""
    for _ in range(6):
        got = talk(lb, say(answer) + GET)
        assert statuses(got) == [502]
        assert b'"status": "failure"' in got


@pytest.mark.parametrize(
    ("answer", "phrase"),
    [
        (b"HTTP/1.1 200 All Is Well\r\nContent-Length: 0\r\n\r\n", b"200 All Is Well"),
        (b"HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n", b"404 Not Found"),
        (b"HTTP/1.1 418 \r\nContent-Length: 0\r\n\r\n", b"418 I'm a Teapot"),
    ],
)
def test_every_answer_has_a_reason_phrase(lb: LoadBalancer, answer: bytes, phrase: bytes) -> None:
    """RFC 9112, section 4: the replica's, or the standard one."""
    assert talk(lb, say(answer)).startswith(b"HTTP/1.1 " + phrase + b"\r\n")


@pytest.mark.parametrize(
    ("request_bytes", "line"),
    [
        (b"GET /lb/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"HTTP/1.1 200 OK\r\n"),
        (b"GET nonsense HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n"),
        (b"NONSENSE\r\n\r\n", b"HTTP/1.1 400 Bad Request\r\n"),
    ],
)
def test_the_load_balancers_own_answers_have_phrase_and_date(
    lb: LoadBalancer, request_bytes: bytes, line: bytes
) -> None:
    answer = talk(lb, request_bytes)
    assert answer.startswith(line)
    assert answer.lower().count(b"\r\ndate: ") == 1


def test_an_answer_without_a_date_is_given_one(lb: LoadBalancer) -> None:
    """RFC 9110, section 6.6.1."""
    got = talk(lb, say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")).lower()
    assert len(re.findall(rb"\r\ndate: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d gmt\r\n", got)) == 1


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (b"GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"HEAD", b"HTTP/1.1 200 OK\r\n\r\n"),
    ],
)
def test_an_answer_without_a_body_has_no_framing(lb: LoadBalancer, method: bytes, answer: bytes) -> None:
    """RFC 9112, section 6.1; RFC 9110, section 8.6."""
    head, _, body = talk(lb, say(answer, method=method)).partition(b"\r\n\r\n")
    assert statuses(head) == statuses(answer)
    assert b"transfer-encoding" not in head.lower()
    assert b"content-length" not in head.lower()
    assert body == b""


@pytest.mark.parametrize("media_type", [b"text/event-stream", b"TEXT/Event-Stream; charset=utf-8"])
def test_an_event_stream_is_never_cut_for_silence(lb: LoadBalancer, media_type: bytes) -> None:
    """RFC 9110, section 8.3.1: media types have no case."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: " + media_type + b"\r\nContent-Length: 20\r\n\r\ndata: 1\n\n"
    with socket.create_connection(("127.0.0.1", lb.port), timeout=20) as connection:
        connection.sendall(say(answer, b"X-Then: 30"))
        received = b""
        while b"data: 1\n\n" not in received:
            received += connection.recv(1 << 16)
        connection.settimeout(2.5)  # the response time-out is 2 s
        with pytest.raises(TimeoutError):
            connection.recv(1)


# -- kept connections (RFC 9112, section 9.3) ---------------------------------------------------------------


def test_a_kept_connection_that_ends_costs_nothing(lb: LoadBalancer) -> None:
    """RFC 9112, section 9.3.1: one replica alone, whose connections end a second after an answer."""
    for attempt in range(12):
        assert lb.call("GET", "/", headers={"X-Then": "1.0"}).status == 200
        # About a second later, now before and now after the end.
        time.sleep(1.0 + (attempt - 6) / 2000)
        begun = time.monotonic()
        assert lb.call("GET" if attempt % 2 else "POST", "/now").status == 200
        assert time.monotonic() - begun < 0.4


@pytest.mark.parametrize(
    "unasked",
    [
        b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison",
    ],
)
def test_what_a_replica_says_on_an_idle_connection_answers_nothing(lb: LoadBalancer, unasked: bytes) -> None:
    """RFC 9110, section 15.5.9."""
    for _ in range(3):
        first = lb.call("GET", "/", headers={"X-Later": unasked.hex()})
        assert first.status == 200
        time.sleep(0.3)
        reply = lb.call("GET", "/now")
        assert reply.status == 200
        assert reply.json["line"] == "GET /now HTTP/1.1"
        assert reply.json["connection"] != first.json["connection"]


def test_a_second_answer_to_one_request_answers_nothing(lb: LoadBalancer) -> None:
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none"
    poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
    for _ in range(10):
        assert talk(lb, say(one + poison)).endswith(b"\r\n\r\none")
        assert lb.call("GET", "/now").json["line"] == "GET /now HTTP/1.1"


def test_posts_in_a_row_share_a_connection(lb: LoadBalancer) -> None:
    """One that was used a moment ago is open."""
    assert len({lb.call("POST", "/", b"x").json["connection"] for _ in range(20)}) < 5
