"""A connection to a replica: scripts of requests out and bytes in."""

from itertools import product

import pytest

from loadbalancer.errors import DefectError, UpstreamGarbledError
from loadbalancer.proxy.fast.bodies import Framing
from loadbalancer.proxy.fast.replica_side import (
    MAX_HEAD,
    MAY_FOLLOW,
    Answered,
    ReplicaSide,
    ReplicaState,
)

IDLE, ASKED, ANSWER, TUNNEL, CLOSED = ReplicaState

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"


def asked(method: str = "GET") -> ReplicaSide:
    side = ReplicaSide("S1")
    side.asked(method)
    return side


def status(answered: Answered) -> int:
    assert answered.error is None, answered.error
    return answered.head.status if answered.head else 0


def side_in(state: ReplicaState) -> ReplicaSide:
    """A side that has come to a state by bytes and calls alone."""
    side = ReplicaSide("S1")
    if state in (ASKED, ANSWER, TUNNEL):
        side.asked("GET")
    if state is ANSWER:
        side.receive(OK)
    elif state is TUNNEL:
        side.receive(SWITCH)
    elif state is CLOSED:
        side.ended()
    assert side.state is state
    return side


@pytest.mark.parametrize(("before", "after"), list(product(ReplicaState, ReplicaState)), ids=lambda s: s.name)
def test_only_what_may_follow_follows(before: ReplicaState, after: ReplicaState) -> None:
    side = side_in(before)
    if after in MAY_FOLLOW[before]:
        side.become(after)
        assert side.state is after
    else:
        with pytest.raises(DefectError, match=f"cannot go from {before.name} to {after.name}"):
            side.become(after)
        assert side.state is before


def test_one_answer_after_the_other() -> None:
    side = ReplicaSide("S1")
    for _ in range(3):
        side.asked("GET")
        answered = side.receive(OK + b"ok")
        assert (status(answered), answered.body, answered.whole) == (200, b"ok", True)
        assert side.reuse()
        assert side.state is IDLE


@pytest.mark.parametrize("data", [OK + b"ok", SWITCH, b"HTTP/1.1 103 Hint\r\n\r\n" + OK + b"ok"])
def test_an_answer_byte_by_byte(data: bytes) -> None:
    side, statuses, body = asked(), [], b""
    for byte in data:
        answered = side.receive(bytes([byte]))
        statuses += [head.status for head in answered.informational]
        statuses += [status(answered)] if answered.head else []
        body += answered.body
    assert statuses == [101] if data == SWITCH else statuses[-1:] == [200]
    assert body == (b"" if data == SWITCH else b"ok")


@pytest.mark.parametrize(
    ("head", "method", "framing", "length"),
    [
        (b"200 OK\r\nContent-Length: 7", "GET", Framing.LENGTH, 7),
        (b"200 OK\r\nContent-Length: 0", "GET", Framing.NONE, 0),
        (b"200 OK\r\nContent-Length: 7", "HEAD", Framing.NONE, 7),
        (b"200 OK\r\nTransfer-Encoding: Chunked", "GET", Framing.CHUNKED, None),
        (b"200 OK\r\nTransfer-Encoding: chunked", "HEAD", Framing.NONE, None),
        (b"200 OK\r\nX: y", "GET", Framing.CLOSE, None),
        (b"200 OK\r\nX: y", "HEAD", Framing.NONE, None),
        (b"204 No Content\r\nContent-Length: 7", "GET", Framing.NONE, 7),
        (b"304 Not Modified\r\nContent-Length: 7", "GET", Framing.NONE, 7),
        (b"304 Not Modified\r\nTransfer-Encoding: chunked", "GET", Framing.NONE, None),
    ],
)
def test_where_bodies_end(head: bytes, method: str, framing: Framing, length: int | None) -> None:
    """RFC 9112, section 6.3."""
    side = asked(method)
    answered = side.receive(b"HTTP/1.1 " + head + b"\r\n\r\n")
    assert status(answered)
    assert answered.head is not None
    assert (answered.head.framing, answered.head.length) == (framing, length)
    assert answered.whole is (framing is Framing.NONE)
    assert side.reuse() is (framing is not Framing.CLOSE)


@pytest.mark.parametrize(
    "both",
    [b"Content-Length: 9\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\nContent-Length: 9"],
)
def test_of_both_lengths_the_chunks_count_and_the_connection_is_not_kept(both: bytes) -> None:
    """RFC 9112, section 6.3."""
    side = asked()
    answered = side.receive(b"HTTP/1.1 200 OK\r\n" + both + b"\r\n\r\n2\r\nok\r\n0\r\n\r\n")
    assert (status(answered), answered.body, answered.whole) == (200, b"ok", True)
    assert answered.head is not None
    assert answered.head.length is None
    assert not side.reuse()


def test_hints_come_before_the_answer() -> None:
    answered = asked().receive(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK + b"ok"
    )
    assert [head.status for head in answered.informational] == [100, 103]
    assert answered.informational[1].headers == [(b"Link", b"</a>")]
    assert (status(answered), answered.body) == (200, b"ok")


def test_trailers_come_after_it() -> None:
    side = asked()
    side.receive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-S")
    answered = side.receive(b"um: 1\r\nSet-Cookie: evil\r\n\r\n")
    assert (answered.trailers, answered.whole) == ([(b"x-sum", b"1")], True)
    assert side.reuse()


def test_bytes_that_nothing_has_asked_for_end_the_connection() -> None:
    side = asked()
    answered = side.receive(OK + b"ok" + OK + b"to nobody")
    assert (answered.body, answered.whole) == (b"ok", True)
    assert not side.reuse()
    assert side.state is CLOSED


def test_they_may_come_in_a_packet_of_their_own() -> None:
    side = asked()
    side.receive(OK + b"ok")
    assert side.receive(b"more").body == b""
    assert not side.reuse()


def test_a_body_until_the_end() -> None:
    side = asked()
    assert not side.receive(b"HTTP/1.0 200 OK\r\n\r\nuntil").whole
    assert side.receive(b" the end").body == b" the end"
    assert side.ended(), "that is its end"


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200", OK + b"o", OK.replace(b"2\r\n", b"0\r\n")])
def test_the_end_of_the_connection_ends_no_other_body(data: bytes) -> None:
    side = asked()
    if data:
        side.receive(data)
    assert side.begun is bool(data)
    assert not side.ended()
    assert side.state is CLOSED


def test_another_protocol_is_passed_as_it_comes() -> None:
    side = asked()
    answered = side.receive(SWITCH + OK)
    assert (status(answered), answered.body, side.state) == (101, OK, TUNNEL)
    assert side.receive(b"\x00").body == b"\x00"
    assert not side.ended()


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: X, Close", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: Keep-Alive", True),
    ],
)
def test_which_connections_are_kept(head: bytes, kept: bool) -> None:
    """RFC 9112, section 9.3."""
    side = asked()
    assert side.receive(head + b"\r\n\r\n").whole
    assert side.reuse() is kept


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 099 X\r\n\r\n",
        b"HTTP/1.1 600 X\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nA B: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK[:-2] + b"X: " + b"x" * MAX_HEAD + b"\r\n\r\nok",
        b"HTTP/1.1 103 Hint\r\n\r\n" * (MAX_HEAD // 20),
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD,
    ],
)
@pytest.mark.parametrize("pieces", [1, 5])
def test_what_is_no_answer_is_an_error_in_words(data: bytes, pieces: int) -> None:
    side, error = asked(), None
    size = -(-len(data) // pieces)
    for place in range(0, len(data), size):
        error = error or side.receive(data[place : place + size]).error
    assert isinstance(error, UpstreamGarbledError)
    assert str(error).startswith("S1 answered ")


@pytest.mark.parametrize("media_type", ["text/event-stream", "Text/Event-Stream", "TEXT/EVENT-STREAM;x=y"])
@pytest.mark.parametrize("name", ["Content-Type", "content-type", "CONTENT-TYPE"])
def test_event_streams_are_known_whatever_the_case(name: str, media_type: str) -> None:
    """RFC 9110, section 8.3.1."""
    head = f"HTTP/1.1 200 OK\r\n{name}: {media_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
    answered = asked().receive(head.encode())
    assert answered.head is not None
    assert answered.head.endless
