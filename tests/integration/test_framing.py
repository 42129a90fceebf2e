"""Where messages end (RFC 9112, sections 6, 7 and 11.2): each byte is read once, as what it was sent as."""

import json
import socket
from collections.abc import Iterator

import pytest

from tests.harness import LoadBalancer, replica
from tests.raw import GET, LAST, connect, read_until, say, statuses, talk, targets

ADMIN = b"GET /admin?from=a-body HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture(scope="module")
def lb() -> Iterator[LoadBalancer]:
    """Its replica says what it is told to say; nothing that a client asks for may have it ejected."""
    with LoadBalancer("--command", replica("scripted"), "--load-factor", "0", replicas=1) as running:
        yield running
        assert running.state()["Server-1"]["state"] == "up"
    assert not [record for record in running.records if record["event"] == "defect"]


@pytest.fixture(scope="module", params=["fast", "asgi"])
def both(request: pytest.FixtureRequest, lb: LoadBalancer) -> Iterator[LoadBalancer]:
    """Either lane."""
    if request.param == "fast":
        yield lb
        return
    options = ("--lane", "asgi", "--command", replica("scripted"), "--load-factor", "0")
    with LoadBalancer(*options, replicas=1) as running:
        yield running


def seen(lb: LoadBalancer) -> list[str]:
    """The request lines that the replica has read, in their order."""
    lines: list[str] = lb.call("GET", "/seen").json
    return lines


def described(answer: bytes) -> dict[str, object]:
    facts: dict[str, object] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return facts


# -- requests: sections 6 and 11.2 ----------------------------------------------------------------------


def test_a_body_that_looks_like_a_request_is_a_body_each_time_it_comes(both: LoadBalancer) -> None:
    before = len(seen(both))
    for _ in range(3):
        with connect(both) as connection:
            connection.sendall(
                GET + b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(ADMIN)
            )
            read_until(connection, b'"GET /x HTTP/1.1"')
            connection.sendall(ADMIN)
            assert f'"length": {len(ADMIN)}'.encode() in read_until(connection, b'"POST /p HTTP/1.1"')
    assert seen(both)[before:] == ["GET /x HTTP/1.1", "POST /p HTTP/1.1"] * 3


def test_a_half_head_behind_a_request_is_no_answer_to_somebody_else(both: LoadBalancer) -> None:
    half = b"GET /evil HTTP/1.1\r\nHost: x\r\nX-Pad: "
    before = len(seen(both))
    with connect(both) as attacker:
        attacker.sendall(GET + half)
        read_until(attacker, b'"GET /x HTTP/1.1"')
        assert b"GET /x " in talk(both, GET[:-2] + b"Connection: close\r\n\r\n")
        with connect(both) as victim:
            victim.sendall(GET)
            assert b'"GET /x HTTP/1.1"' in read_until(victim, b"}")
    assert "GET /evil HTTP/1.1" not in seen(both)[before:]


def test_a_chunked_body_that_looks_like_a_request_is_one_body(both: LoadBalancer) -> None:
    before = len(seen(both))
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(ADMIN), ADMIN)
    head = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert statuses(talk(both, head + chunks[:9], chunks[9:] + LAST)) == [200, 200]
    assert seen(both)[before:] == ["POST /c HTTP/1.1", "GET /last HTTP/1.1"]


def test_http_1_0_without_a_host_is_given_one(lb: LoadBalancer) -> None:
    """RFC 9112, section 3.2: what a replica gets is HTTP/1.1, which has a Host."""
    raw = str(described(talk(lb, b"GET /old HTTP/1.0\r\n\r\n"))["raw"])
    assert raw.startswith("GET /old HTTP/1.1\r\n")
    assert f"\r\nhost: 127.0.0.1:{lb.port}\r\n" in raw.lower()


@pytest.mark.parametrize("line", [b"Proxy-Authorization: Basic eA==", b"Authorization: Basic eA=="])
def test_credentials_are_the_replicas_to_judge(lb: LoadBalancer, line: bytes) -> None:
    """RFC 9110, section 11.7."""
    assert line.decode() in str(described(talk(lb, LAST[:-2] + line + b"\r\n\r\n"))["raw"])


@pytest.mark.parametrize(
    ("method", "status"), [(b"PROPFIND", 200), (b"PURGE", 200), (b"FETCH", 501), (b"get", 400)]
)
def test_methods_are_passed_or_said_not_to_be_known(lb: LoadBalancer, method: bytes, status: int) -> None:
    """RFC 9110, section 9.1."""
    assert statuses(talk(lb, LAST.replace(b"GET", method))) == [status]


# -- what comes before a body: RFC 9110, section 10.1.1 -------------------------------------------------


@pytest.mark.parametrize("status", [b"401 Unauthorized", b"413 Content Too Large", b"200 OK"])
def test_a_body_that_is_not_wanted_is_not_asked_for(lb: LoadBalancer, status: bytes) -> None:
    answer = b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
    lines = (b"X-When: at-once", b"Expect: 100-continue", b"Content-Length: 1000000")
    answered = talk(lb, say(answer, *lines, method=b"POST", close=False))
    assert statuses(answered) == [int(status[:3])], "no 100 before it"
    assert answered.endswith(b"\r\n\r\nno")


@pytest.mark.parametrize("framing", [b"Content-Length: 5", b"Transfer-Encoding: chunked"])
def test_a_body_that_is_wanted_is_asked_for_once(lb: LoadBalancer, framing: bytes) -> None:
    with connect(lb) as connection:
        connection.sendall(say(OK, b"Expect: 100-continue", framing, method=b"PUT"))
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 100 Continue\r\n")
        connection.sendall(b"hello" if framing.endswith(b"5") else b"5\r\nhello\r\n0\r\n\r\n")
        assert statuses(read_until(connection, b"\r\n\r\nok")) == [200]


# -- answers: section 6.3 -------------------------------------------------------------------------------

BOTH = [
    b"Content-Length: 40\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 40",
    b"transfer-encoding:chunked\r\nCONTENT-LENGTH:2",
]


@pytest.mark.parametrize("framing", BOTH)
def test_of_both_lengths_the_chunks_count(lb: LoadBalancer, framing: bytes) -> None:
    """A real data browser's download does this: it is no reason to eject its replica."""
    answer = b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    for _ in range(7):
        answered = talk(lb, say(answer))
        head, _, body = answered.partition(b"\r\n\r\n")
        assert (statuses(answered), body) == ([200], b"2\r\nok\r\n0\r\n\r\n")
        assert b"content-length" not in head.lower()
        assert head.lower().count(b"transfer-encoding: chunked") == 1
    assert lb.state()["Server-1"]["state"] == "up"


def test_a_connection_with_both_lengths_is_not_used_again(lb: LoadBalancer) -> None:
    def connection() -> int:
        return int(lb.call("GET", "/facts").json["connection"])

    assert connection() == connection(), "usually they are"
    used = connection()
    answer = b"HTTP/1.1 200 OK\r\n" + BOTH[0] + b"\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    assert statuses(talk(lb, say(answer))) == [200]
    assert connection() != used


NONSENSE = {
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    "a list of lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
    "a signed length": b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked twice": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a bare line feed": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "a status that does not exist": b"HTTP/1.1 777 Odd\r\nContent-Length: 0\r\n\r\n",
    "a name with a space": b"HTTP/1.1 200 OK\r\nA B: c\r\nContent-Length: 2\r\n\r\nok",
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE.keys())
def test_answers_that_make_no_sense_are_a_502_and_eject_nobody(lb: LoadBalancer, answer: bytes) -> None:
    for _ in range(6):
        assert statuses(talk(lb, say(answer))) == [502]
    assert lb.state()["Server-1"]["state"] == "up"


def test_a_second_answer_to_one_request_answers_nothing(lb: LoadBalancer) -> None:
    answers = talk(lb, say(OK + OK.replace(b"ok", b"no"), close=False), LAST)
    assert b"\r\n\r\nno" not in answers
    assert b'"GET /last HTTP/1.1"' in answers


@pytest.mark.parametrize("line", [b"HTTP/1.1 404 \r\n", b"HTTP/1.1 404\r\n"])
def test_every_answer_has_a_reason_phrase(lb: LoadBalancer, line: bytes) -> None:
    answered = talk(lb, say(line + b"Content-Length: 0\r\n\r\n"))
    assert answered.startswith(b"HTTP/1.1 404 Not Found\r\n")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", []),
        (b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", []),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", [b"content-length: 5"]),
        (b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", []),
    ],
)
def test_answers_without_a_body_have_no_framing_for_one(
    lb: LoadBalancer, answer: bytes, told: list[bytes]
) -> None:
    """RFC 9110, section 8.6, and RFC 9112, section 6.1."""
    answered = talk(lb, say(answer)).lower()
    assert [line for line in answered.split(b"\r\n") if line[:9] in (b"content-l", b"transfer-")] == told


@pytest.mark.parametrize("body", [b"hello", b"5\r\nhello\r\n0\r\n\r\n"])
def test_a_request_and_an_answer_at_once_stay_apart(lb: LoadBalancer, body: bytes) -> None:
    """A client that sends the next request before it has read the answer (section 9.3.2)."""
    framing = b"Content-Length: 5" if body == b"hello" else b"Transfer-Encoding: chunked"
    with connect(lb) as connection:
        for _ in range(5):
            connection.sendall(say(OK, framing, method=b"POST", close=False, body=body) + GET)
        connection.sendall(LAST)
        connection.shutdown(socket.SHUT_WR)
        answers = read_until(connection, b'"GET /last HTTP/1.1"')
    assert statuses(answers) == [200] * 11
    assert answers.count(b"\r\n\r\nok") == 5
    assert not targets(answers)
