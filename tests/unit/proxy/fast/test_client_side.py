"""The client's side of a connection: scripts of bytes in and requests out."""

from itertools import product

import pytest

from loadbalancer.errors import (
    BadRequestError,
    BodyTooLargeError,
    DefectError,
    HeadTooLargeError,
    NotImplementedByUsError,
)
from loadbalancer.proxy.fast.client_side import MAY_FOLLOW, ClientSide, ClientState, Received
from loadbalancer.proxy.fast.limits import Limits
from loadbalancer.settings import Settings
from tests.unit.proxy.fast.rig import make_peer

IDLE, HEAD, BODY, ANSWER, REST, TUNNEL, CLOSING, CLOSED = ClientState

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET /u HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"


def make_side(**options: int) -> ClientSide:
    side = ClientSide(Limits.of(Settings.model_validate(options)), lambda: "id")
    side.peer = make_peer()
    return side


def target(received: Received) -> bytes:
    assert received.error is None
    return received.request.target if received.request else b""


def side_in(state: ClientState) -> ClientSide:
    """A side that has come to a state by bytes and calls alone."""
    side = make_side()
    if state is HEAD:
        side.receive(GET[:10])
    elif state in (BODY, REST):
        side.receive(POST)
    elif state is ANSWER:
        side.receive(GET)
    elif state is TUNNEL:
        side.receive(UPGRADE)
        side.switched()
    elif state is not IDLE:
        side.stop_reading()
    if state is REST:
        side.answered()
    elif state is CLOSED:
        side.become(CLOSED)
    assert side.state is state
    return side


@pytest.mark.parametrize(("before", "after"), list(product(ClientState, ClientState)), ids=lambda s: s.name)
def test_only_what_may_follow_follows(before: ClientState, after: ClientState) -> None:
    side = side_in(before)
    if after in MAY_FOLLOW[before]:
        side.become(after)
        assert side.state is after
    else:
        with pytest.raises(DefectError, match=f"cannot go from {before.name} to {after.name}"):
            side.become(after)
        assert side.state is before


def test_a_connection_without_a_body_after_the_other() -> None:
    side = make_side()
    received = side.receive(GET)
    assert (target(received), received.whole, side.state) == (b"/a", True, ANSWER)
    side.answered()
    assert (side.state, side.unread) == (IDLE, False)
    assert target(side.receive(GET.replace(b"/a", b"/2"))) == b"/2"


def test_a_head_that_comes_byte_by_byte() -> None:
    side = make_side()
    for place in range(len(GET) - 1):
        received = side.receive(GET[place : place + 1])
        assert (received.request, received.error, side.state) == (None, None, HEAD)
        assert not side.unread, "a part of a head is not something to read later"
    assert target(side.receive(GET[-1:])) == b"/a"


def test_empty_lines_before_a_request_are_skipped() -> None:
    side = make_side()
    assert side.receive(b"\r\n").request is None
    assert side.state is IDLE
    assert target(side.receive(b"\r\n\r\n" + GET)) == b"/a"


def test_a_body_of_known_length_in_parts() -> None:
    side = make_side()
    received = side.receive(POST + b"he")
    assert (target(received), received.body, received.whole, side.state) == (b"/b", b"he", False, BODY)
    received = side.receive(b"ll")
    assert (received.request, received.body, received.whole) == (None, b"ll", False)
    received = side.receive(b"oGET")
    assert (received.body, received.whole, side.state) == (b"o", True, ANSWER)
    assert side.unread


def test_chunks_with_trailers() -> None:
    side = make_side()
    assert side.receive(CHUNKED + b"5\r\nhel").body == b"hel"
    received = side.receive(b"lo\r\n0\r\nX-Sum: 1\r\nHost: evil\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n" + GET)
    assert (received.body, received.whole) == (b"lo", True)
    assert received.trailers == [(b"x-sum", b"1")], "RFC 9110, section 6.5.1"
    side.answered()
    assert target(side.receive(b"")) == b"/a"


def test_pipelined_requests_wait_for_their_turn() -> None:
    side = make_side()
    received = side.receive(GET + POST + b"hello" + CHUNKED + b"0\r\n\r\n" + GET[:20])
    assert target(received) == b"/a"
    for expected in (b"/b", b"/c"):
        assert side.unread
        side.answered()
        received = side.receive(b"")
        assert (target(received), received.whole) == (expected, True)
    side.answered()
    assert side.receive(b"").request is None
    assert (side.state, side.unread) == (HEAD, False)
    assert target(side.receive(GET[20:])) == b"/a"


def test_bytes_that_come_during_an_answer_are_kept_in_order() -> None:
    side = make_side()
    side.receive(GET)
    assert side.receive(GET[:5]).request is None
    assert side.receive(GET[5:]).request is None
    assert side.state is ANSWER
    side.answered()
    assert target(side.receive(b"")) == b"/a"


@pytest.mark.parametrize("body", [b"hello", b"GET /"])
def test_the_rest_of_a_request_that_was_answered_early_is_dropped(body: bytes) -> None:
    side = make_side()
    side.receive(POST + body[:1])
    side.answered()
    assert side.state is REST
    received = side.receive(body[1:3])
    assert (received.request, received.body, side.state) == (None, b"", REST)
    received = side.receive(body[3:] + GET)
    assert (target(received), side.state) == (b"/a", ANSWER)


def test_the_rest_in_chunks_is_dropped_too() -> None:
    side = make_side()
    side.receive(CHUNKED + b"5\r\nhe")
    side.answered()
    received = side.receive(b"llo\r\n0\r\nX: GET /evil HTTP/1.1\r\n\r\n" + GET)
    assert target(received) == b"/a"


def test_nonsense_in_the_rest_is_an_error() -> None:
    side = make_side()
    side.receive(CHUNKED + b"5\r\nhe")
    side.answered()
    assert isinstance(side.receive(b"llo\r\nnonsense\r\n").error, BadRequestError)


def test_early_bytes_of_another_protocol_are_handed_over() -> None:
    side = make_side()
    received = side.receive(UPGRADE + b"early ")
    assert (received.request is not None and received.request.upgrade, received.whole) == (b"echo", True)
    side.receive(b"bytes")
    assert side.switched() == b"early bytes"
    assert (side.state, side.unread) == (TUNNEL, False)


def test_an_upgrade_that_is_not_agreed_to_is_a_request_like_any_other() -> None:
    side = make_side()
    side.receive(UPGRADE + GET)
    side.answered()
    assert target(side.receive(b"")) == b"/a"


@pytest.mark.parametrize(
    "head",
    [
        UPGRADE.replace(b"echo", b"h2c").replace(b"Upgrade\r\n", b"Upgrade, HTTP2-Settings\r\n"),
        UPGRADE.replace(b"GET", b"POST").replace(b"Host", b"Content-Length: 3\r\nHost") + b"abc",
        UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0"),
        UPGRADE.replace(b"Connection: Upgrade", b"Connection: keep-alive"),
    ],
    ids=["h2c", "with a body", "HTTP/1.0", "not named by Connection"],
)
def test_what_asks_for_no_upgrade_that_is_taken_up(head: bytes) -> None:
    received = make_side().receive(head)
    assert received.request is not None
    assert (received.request.upgrade, received.whole) == (b"", True)
    assert b"upgrade" not in received.request.outgoing.lower()


def test_websockets_are_asked_for_beside_h2c() -> None:
    received = make_side().receive(UPGRADE.replace(b"echo", b"h2c, websocket"))
    assert received.request is not None
    assert received.request.upgrade == b"websocket"
    assert b"\r\nupgrade: websocket\r\nconnection: upgrade\r\n" in received.request.outgoing


def test_expectations_wait_for_a_body_only() -> None:
    expects = b"Expect: 100-continue\r\n\r\n"
    waiting = make_side().receive(POST[:-2] + expects).request
    assert waiting is not None
    assert waiting.expects_continue
    assert b"\r\nexpect: 100-continue\r\n" in waiting.outgoing
    bodiless = make_side().receive(GET[:-2] + expects).request
    assert bodiless is not None
    assert not bodiless.expects_continue
    assert b"expect" not in bodiless.outgoing


# -- bounds -------------------------------------------------------------------------------------------


def test_a_body_that_is_announced_too_large_is_refused_at_once() -> None:
    received = make_side(max_body=4).receive(POST)
    assert isinstance(received.error, BodyTooLargeError)


@pytest.mark.parametrize("parts", [1, 3])
def test_chunks_are_measured_as_a_whole(parts: int) -> None:
    side = make_side(max_body=5)
    received = side.receive(CHUNKED)
    for _ in range(parts):
        assert received.error is None
        received = side.receive(b"%x\r\n%b\r\n" % (6 // parts, b"x" * (6 // parts)))
    assert isinstance(received.error, BodyTooLargeError)
    exact = make_side(max_body=5).receive(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n")
    assert (exact.error, exact.whole) == (None, True)


@pytest.mark.parametrize("pieces", [1, 7])
def test_heads_are_bounded_however_they_come(pieces: int) -> None:
    for pad, refused in ((900, False), (1100, True)):
        side = make_side(max_head=1024)
        head = GET[:-2] + b"X: " + b"x" * pad + b"\r\n\r\n"
        size = -(-len(head) // pieces)
        error = None
        for place in range(0, len(head), size):
            error = error or side.receive(head[place : place + size]).error
        assert isinstance(error, HeadTooLargeError) is refused


def test_an_endless_target_is_a_414_before_its_end_has_come() -> None:
    error = make_side(max_head=1024, max_target=100).receive(b"GET /" + b"x" * 2000).error
    assert isinstance(error, HeadTooLargeError)
    assert error.status == 414


@pytest.mark.parametrize(
    ("begin", "kind"),
    [
        (b"\x16\x03\x01", BadRequestError),
        (b"GET /x y", BadRequestError),
        (b"GARBAGE\r\n", BadRequestError),
        (b"FETCH / HTTP/1.1\r\nHost: x\r\n\r\n", NotImplementedByUsError),
        (b"X" * 65, NotImplementedByUsError),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", NotImplementedByUsError),
    ],
)
def test_what_begins_no_request_is_refused_before_it_is_whole(begin: bytes, kind: type[Exception]) -> None:
    assert isinstance(make_side().receive(begin).error, kind)


def test_trailers_are_bounded() -> None:
    side = make_side(max_head=1024)
    side.receive(CHUNKED + b"1\r\nx\r\n0\r\n")
    error = None
    for _ in range(200):
        error = error or side.receive(b"X-Trailer: 0123456789\r\n").error
    assert isinstance(error, HeadTooLargeError)
    assert error.status == 431


def test_nothing_is_kept_when_reading_stops() -> None:
    side = make_side()
    side.receive(GET + GET)
    side.stop_reading()
    assert (side.state, side.unread) == (CLOSING, False)
