"""A request and its answer: what comes from one side, and what goes to the other."""

from itertools import product

import pytest

from loadbalancer.answers import failure
from loadbalancer.errors import DefectError, UpstreamGarbledError
from loadbalancer.proxy.fast.answer_head import AnswerHead, read_answer_head
from loadbalancer.proxy.fast.exchange import MAY_FOLLOW, REPLAYED, Exchange, ExchangeState
from loadbalancer.proxy.fast.quick import COLLECTED
from tests.unit.proxy.fast.rig import read

SEEKING, ASKED, COLLECTING, ANSWERING, TUNNEL, OVER = ExchangeState

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo, chat/1\r\n\r\n"
EXPECTS = POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")


def exchange(head: bytes = GET) -> Exchange:
    return Exchange(read(head), 0.0)


def asked(head: bytes = GET) -> Exchange:
    made = exchange(head)
    made.connected()
    return made


def answer(*lines: str, status: str = "200 OK", method: str = "GET", version: str = "1.1") -> AnswerHead:
    head = "\r\n".join([f"HTTP/{version} {status}", "Date: then", *lines, "", ""])
    return read_answer_head(head.encode(), method, "S1")


def in_state(state: ExchangeState) -> Exchange:
    """An exchange that has come to a state by what the two sides have sent."""
    made = exchange(UPGRADE)
    if state not in (SEEKING, OVER):
        made.connected()
    if state is COLLECTING:
        made.answer_head(answer("Content-Length: 2"), last=False)
    elif state is ANSWERING:
        made.answer_head(answer("Content-Length: 0"), last=False)
    elif state is TUNNEL:
        made.answer_head(answer("Upgrade: echo", "Connection: Upgrade", status="101 Switch"), last=False)
    elif state is OVER:
        made.become(OVER)
    assert made.state is state
    return made


@pytest.mark.parametrize(
    ("before", "after"), list(product(ExchangeState, ExchangeState)), ids=lambda s: s.name
)
def test_only_what_may_follow_follows(before: ExchangeState, after: ExchangeState) -> None:
    made = in_state(before)
    if after in MAY_FOLLOW[before]:
        made.become(after)
        assert made.state is after
    else:
        with pytest.raises(DefectError, match=f"cannot go from {before.name} to {after.name}"):
            made.become(after)
        assert made.state is before


# -- the request --------------------------------------------------------------------------------------


def test_what_comes_before_there_is_a_connection_is_sent_with_it() -> None:
    made = exchange(POST)
    assert made.request_part(b"he") == b""
    sent = made.connected()
    assert sent == made.request.outgoing + b"he"
    assert made.request_part(b"llo") == b"llo"
    assert made.request_end([]) == b""
    assert made.request_whole


def test_chunks_are_framed_anew_with_their_trailers() -> None:
    made = asked(CHUNKED)
    assert made.request_part(b"0\r\n\r\n") == b"5\r\n0\r\n\r\n\r\n"
    assert made.request_end([(b"x-sum", b"1")]) == b"0\r\nx-sum: 1\r\n\r\n"


@pytest.mark.parametrize("head", [POST, CHUNKED])
def test_a_failed_attempt_is_sent_again_whole(head: bytes) -> None:
    made = exchange(head)
    made.request_part(b"he")
    first = made.connected() + made.request_part(b"llo")
    made.disconnected()
    assert made.request_end([]) == b"", "nobody to send it to"
    second = made.connected()
    end = b"0\r\n\r\n" if head is CHUNKED else b""
    assert second == first + end
    made.disconnected()
    assert made.connected() == second, "and again"


def test_only_so_much_is_kept_to_be_sent_again() -> None:
    made = asked(CHUNKED)
    made.request_part(b"x" * (REPLAYED - 100))
    assert made.repeatable
    made.request_part(b"x" * 100)
    assert not made.repeatable
    with pytest.raises(DefectError):
        made.disconnected()


def test_what_waits_for_a_connection_is_sent_whole_however_long() -> None:
    made = exchange(CHUNKED)
    made.request_part(b"x" * (REPLAYED + 1))
    assert len(made.connected()) > REPLAYED
    assert not made.repeatable


# -- 1xx ----------------------------------------------------------------------------------------------


def test_continue_is_passed_to_those_who_wait_for_it() -> None:
    made = asked(EXPECTS)
    assert b"\r\nexpect: 100-continue\r\n" in made.request.outgoing
    assert made.informational(answer(status="100 Continue")).startswith(b"HTTP/1.1 100 Continue\r\n")
    assert made.informational(answer(status="100 Continue")) == b"", "once is enough"


def test_continue_is_passed_to_nobody_else() -> None:
    assert asked(POST).informational(answer(status="100 Continue")) == b""


def test_a_replica_that_says_nothing_of_it_does_not_hold_the_body_up() -> None:
    made = asked(EXPECTS)
    assert made.awaits_continue
    assert made.go_on() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert not made.awaits_continue


def test_a_body_that_comes_without_waiting_is_as_good() -> None:
    made = asked(EXPECTS)
    assert made.request_part(b"hello") == b"hello"
    assert not made.awaits_continue


def test_a_final_answer_instead_of_continue_ends_the_connection() -> None:
    """RFC 9110, section 10.1.1: the body may come or not, so what follows has two readings."""
    made = asked(EXPECTS)
    assert b"\r\nconnection: close\r\n" in made.answer_head(
        answer("Content-Length: 0", status="401 No"), last=False
    )
    assert not made.keeps


def test_hints_are_passed_on_without_framing() -> None:
    hint = answer("Link: </a>", "Transfer-Encoding: chunked", "Content-Length: 3", status="103 Early Hints")
    assert asked().informational(hint) == b"HTTP/1.1 103 Early Hints\r\nDate: then\r\nLink: </a>\r\n\r\n"


def test_http_1_0_knows_no_1xx() -> None:
    """RFC 9110, section 15.2."""
    made = asked(GET.replace(b"1.1", b"1.0"))
    assert made.informational(answer(status="103 Early Hints")) == b""


# -- the answer ---------------------------------------------------------------------------------------


def test_a_short_answer_is_collected_until_it_is_whole() -> None:
    made = asked()
    assert made.answer_head(answer("Content-Length: 4"), last=False) == b""
    assert (made.state, made.answering) == (COLLECTING, False)
    assert made.answer_part(b"ab") == b""
    assert made.answer_part(b"cd") == b""
    assert made.answer_end([]) == b"HTTP/1.1 200 OK\r\nDate: then\r\ncontent-length: 4\r\n\r\nabcd"
    assert made.complete
    assert made.keeps


def test_a_collected_part_is_forgotten_when_the_request_is_sent_again() -> None:
    made = asked()
    made.answer_head(answer("Content-Length: 4", "X: first"), last=False)
    made.answer_part(b"ab")
    made.disconnected()
    made.connected()
    made.answer_head(answer("Content-Length: 2"), last=False)
    made.answer_part(b"ok")
    assert made.answer_end([]) == b"HTTP/1.1 200 OK\r\nDate: then\r\ncontent-length: 2\r\n\r\nok"


def test_collecting_ends_when_it_takes_too_long() -> None:
    made = asked()
    made.answer_head(answer("Content-Length: 4"), last=False)
    made.answer_part(b"ab")
    assert made.collected().endswith(b"\r\n\r\nab")
    assert (made.state, made.collected()) == (ANSWERING, b"")
    assert made.answer_part(b"cd") == b"cd"
    assert made.answer_end([]) == b""


@pytest.mark.parametrize(("length", "state"), [(COLLECTED, COLLECTING), (COLLECTED + 1, ANSWERING)])
def test_long_answers_stream(length: int, state: ExchangeState) -> None:
    made = asked()
    made.answer_head(answer(f"Content-Length: {length}"), last=False)
    assert made.state is state


def test_chunks_stay_chunks_with_their_trailers() -> None:
    made = asked()
    head = made.answer_head(answer("Transfer-Encoding: chunked", "Trailer: x-sum"), last=False)
    assert head.endswith(b"\r\nTrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n")
    assert made.answer_part(b"hello") == b"5\r\nhello\r\n"
    assert made.answer_end([(b"x-sum", b"1")]) == b"0\r\nx-sum: 1\r\n\r\n"
    assert made.keeps


def test_a_body_until_the_end_becomes_chunks() -> None:
    made = asked()
    assert b"\r\ntransfer-encoding: chunked\r\n" in made.answer_head(answer("X: y"), last=False)
    assert made.keeps


@pytest.mark.parametrize("framing", ["Transfer-Encoding: chunked", "X: y"])
def test_http_1_0_gets_neither_chunks_nor_a_lasting_connection(framing: str) -> None:
    """RFC 9112, section 6.1."""
    made = asked(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    head = made.answer_head(answer(framing), last=False)
    assert b"transfer-encoding" not in head
    assert head.endswith(b"\r\nconnection: close\r\n\r\n")
    assert made.answer_part(b"hello") == b"hello"
    assert made.answer_end([(b"x-sum", b"1")]) == b""
    assert not made.keeps


def test_http_1_0_is_told_when_the_connection_stays() -> None:
    made = asked(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    made.answer_head(answer("Content-Length: 1"), last=False)
    made.answer_part(b"x")
    assert b"\r\nconnection: keep-alive\r\n" in made.answer_end([])


def test_the_last_answer_says_so() -> None:
    made = asked()
    assert b"\r\nconnection: close\r\n" in made.answer_head(answer("Content-Length: 0"), last=True)
    assert not made.keeps
    asks = asked(GET.replace(b"Host", b"Connection: close\r\nHost"))
    assert b"\r\nconnection: close\r\n" in asks.answer_head(answer("Content-Length: 0"), last=False)


@pytest.mark.parametrize(
    ("status", "method", "lines", "told"),
    [
        ("200 OK", "HEAD", ["Content-Length: 7"], b"content-length: 7"),
        ("200 OK", "HEAD", ["Transfer-Encoding: chunked"], None),
        ("200 OK", "HEAD", [], None),
        ("304 Not Modified", "GET", ["Content-Length: 7"], b"content-length: 7"),
        ("204 No Content", "GET", ["Content-Length: 7"], None),
        ("204 No Content", "GET", ["Transfer-Encoding: chunked"], None),
    ],
)
def test_answers_without_a_body(status: str, method: str, lines: list[str], told: bytes | None) -> None:
    """RFC 9110, sections 8.6 and 9.3.2; RFC 9112, section 6.1."""
    made = asked(GET.replace(b"GET", method.encode()))
    data = made.answer_head(answer(*lines, status=status, method=method), last=False)
    framing = [line for line in data.split(b"\r\n") if line[:6] in (b"conten", b"transf")]
    assert framing == ([told] if told else [])
    assert data.endswith(b"\r\n\r\n")
    assert made.answer_end([]) == b""
    assert made.keeps


def test_hop_by_hop_headers_end_here() -> None:
    data = asked().answer_head(
        answer("Connection: X-Hop, keep-alive", "Keep-Alive: timeout=5", "X-Hop: 1", "Content-Length: 0"),
        last=False,
    )
    assert data == b"HTTP/1.1 200 OK\r\nDate: then\r\ncontent-length: 0\r\n\r\n"


def test_a_date_and_a_reason_are_added_where_they_are_missing() -> None:
    head = read_answer_head(b"HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n", "GET", "S1")
    data = asked().answer_head(head, last=False)
    assert data.startswith(b"HTTP/1.1 404 Not Found\r\ndate: ")


# -- another protocol ---------------------------------------------------------------------------------


@pytest.mark.parametrize("agreed", ["echo", "ECHO", "chat/1"])
def test_another_protocol_that_was_asked_for(agreed: str) -> None:
    made = asked(UPGRADE)
    head = answer(f"Upgrade: {agreed}", "Connection: Upgrade", "Transfer-Encoding: chunked", status="101 S")
    data = made.answer_head(head, last=False)
    assert made.switched
    assert data == (
        f"HTTP/1.1 101 S\r\nDate: then\r\nconnection: upgrade\r\nupgrade: {agreed}\r\n\r\n".encode()
    ), "no framing in 1xx (RFC 9112, section 6.1)"


@pytest.mark.parametrize(
    ("head", "agreed"),
    [(GET, "Upgrade: echo"), (UPGRADE, "Upgrade: other"), (UPGRADE, "X: y"), (UPGRADE, "Upgrade: echo, h2c")],
)
def test_another_protocol_that_nobody_asked_for(head: bytes, agreed: str) -> None:
    """RFC 9110, section 15.2.2."""
    made = asked(head)
    with pytest.raises(UpstreamGarbledError):
        made.answer_head(answer(agreed, "Connection: Upgrade", status="101 Switch"), last=False)
    assert not made.switched


# -- our own answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("last", [False, True])
def test_an_answer_of_our_own(method: bytes, last: bool) -> None:
    made = exchange(GET.replace(b"GET", method))
    data = made.own_answer(failure(503, "not now"), last=last)
    assert data.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert data.endswith(b"}") is (method == b"GET")
    assert (b"\r\nconnection: close\r\n" in data) is last
    assert (made.status, made.keeps) == (503, not last)
