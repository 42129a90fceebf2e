"""What the ASGI lane makes of heads, and of what a client sends: pure, or nearly so."""

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.errors import (
    BadRequestError,
    LoadBalancerError,
    NotImplementedByUsError,
    UpstreamGarbledError,
)
from loadbalancer.proxy.asgi.answer_head import (
    answer_headers,
    handshake_headers,
    is_event_stream,
    reason_phrase,
)
from loadbalancer.proxy.asgi.client_streams import Inbox
from loadbalancer.proxy.asgi.request_head import body_length, check, expects_continue
from loadbalancer.proxy.asgi.upstream_connection import MAX_HEAD, AnswerHeads
from loadbalancer.proxy.headers import Header

LENGTH, CODING = b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"
START, END = b"HTTP/1.1 200 OK\r\n", b"\r\n"


def fed(heads: AnswerHeads, data: bytes, cuts: list[int]) -> bytes:
    """Feed data in pieces that end at the cuts."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return b"".join(heads.feed(data[a:b]) for a, b in itertools.pairwise(edges))


CUTS = st.lists(st.integers(0, 1000), max_size=5)


@given(CUTS, st.permutations([LENGTH, CODING, b"X-A: 1\r\n", b"content-length : 7\r\n"]))
def test_of_two_framings_the_length_goes(cuts: list[int], lines: list[bytes]) -> None:
    """RFC 9112, section 6.3, wherever the answer is cut."""
    body = b"\r\nContent-Length: 9\r\n\r\n"
    heads = AnswerHeads()
    passed = fed(heads, START + b"".join(lines) + END + body, cuts)
    kept = [line for line in lines if not line.lower().startswith(b"content-length")]
    assert passed == START + b"".join(kept) + END + body
    assert heads.framed_twice


@given(CUTS, st.sampled_from([LENGTH, CODING, b"", b"X-Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"]))
def test_an_answer_that_is_framed_once_passes_as_it_is(cuts: list[int], lines: bytes) -> None:
    answer = START + lines + END + b"5\r\nhello\r\n0\r\n\r\n"
    heads = AnswerHeads()
    assert fed(heads, answer, cuts) == answer
    assert not heads.framed_twice


@given(CUTS)
def test_the_heads_before_the_head_are_read_too(cuts: list[int]) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    passed = fed(AnswerHeads(), hints + hints + START + LENGTH + CODING + END, cuts)
    assert passed == hints + hints + START + CODING + END


def test_a_head_without_an_end_is_not_held_for_ever() -> None:
    heads = AnswerHeads()
    assert heads.feed(START) == b""
    assert len(heads.feed(b"x" * MAX_HEAD)) == len(START) + MAX_HEAD


def request_scope(*headers: Header, **others: Any) -> Any:
    scope = {"type": "http", "method": "POST", "raw_path": b"/x", "query_string": b"", "http_version": "1.1"}
    return {**scope, "headers": [(b"host", b"x"), *headers], **others}


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ((), 0),
        (((b"content-length", b"12"),), 12),
        (((b"transfer-encoding", b"chunked"),), None),
        (((b"transfer-encoding", b"Chunked"),), None),
    ],
)
def test_a_request_with_one_framing_passes(headers: tuple[Header, ...], length: int | None) -> None:
    scope = request_scope(*headers)
    check(scope)
    assert body_length(scope) == length


@pytest.mark.parametrize(
    ("scope", "error"),
    [
        (request_scope((b"content-length", b"1"), (b"transfer-encoding", b"chunked")), BadRequestError),
        (request_scope((b"content-length", b"1"), (b"content-length", b"1")), BadRequestError),
        (request_scope((b"content-length", b"1, 1")), BadRequestError),
        (request_scope((b"content-length", b"-1")), BadRequestError),
        (request_scope((b"content-length", b"\xb2")), BadRequestError),
        (request_scope((b"transfer-encoding", b"gzip, chunked")), NotImplementedByUsError),
        (request_scope((b"transfer-encoding", b"chunked"), http_version="1.0"), BadRequestError),
        (request_scope((b"transfer-encoding", b"chunked"), http_version="2"), BadRequestError),
        (request_scope((b"proxy-connection", b"close"), http_version="2"), BadRequestError),
        (request_scope((b"x-a", b"a\x0cb")), BadRequestError),
        (request_scope((b"x a", b"b")), BadRequestError),
        (request_scope(raw_path=b"/\x00"), BadRequestError),
        (request_scope(query_string=b"\xff"), BadRequestError),
        (request_scope(method="post"), NotImplementedByUsError),
        (request_scope(headers=[(b"host", b"")]), BadRequestError),
        (request_scope((b"content-length", b"1"), type="websocket"), BadRequestError),
    ],
)
def test_a_request_with_two_readings_is_refused(scope: Any, error: type[LoadBalancerError]) -> None:
    """RFC 9110, sections 5.5, 7.2 and 9.1; RFC 9112, sections 3.2, 6.1 and 6.3; RFC 9113, section 8.2.2."""
    with pytest.raises(error):
        check(scope)


@pytest.mark.parametrize(
    ("headers", "version", "expects"),
    [
        (((b"expect", b"100-Continue"), (b"content-length", b"1")), "1.1", True),
        (((b"expect", b"100-continue"), (b"content-length", b"0")), "1.1", False),
        (((b"expect", b"100-continue"), (b"content-length", b"1")), "1.0", False),
        (((b"expect", b"tea"), (b"content-length", b"1")), "1.1", False),
        (((b"content-length", b"1"),), "1.1", False),
    ],
)
def test_a_client_expects_to_be_asked(headers: tuple[Header, ...], version: str, expects: bool) -> None:
    """RFC 9110, section 10.1.1."""
    assert expects_continue(request_scope(*headers, http_version=version)) is expects


@pytest.mark.parametrize("status", [101, 100, 199, 0])
def test_a_status_that_ends_no_exchange_is_no_answer(status: int) -> None:
    with pytest.raises(UpstreamGarbledError):
        answer_headers("S", status, [])


@pytest.mark.parametrize(
    "header", [(b"X\x00", b"a"), (b"", b"a"), (b"X", b"a\x00"), (b"X", b"a\nb"), (b"X", b"\x7f")]
)
def test_an_answer_with_a_control_character_is_none(header: Header) -> None:
    """RFC 9110, section 5.5."""
    with pytest.raises(UpstreamGarbledError):
        answer_headers("S", 200, [header])
    with pytest.raises(UpstreamGarbledError):
        handshake_headers("S", [header])


def test_a_handshakes_headers_are_the_replicas_but_for_the_handshake() -> None:
    given: list[Header] = [
        (b"Upgrade", b"websocket"),
        (b"Connection", b"Upgrade"),
        (b"Sec-WebSocket-Accept", b"x"),
        (b"Content-Length", b"0"),
        (b"Set-Cookie", b"a=1"),
    ]
    assert handshake_headers("S", given) == [(b"set-cookie", b"a=1")]


@pytest.mark.parametrize(
    ("value", "endless"),
    [
        (b"text/event-stream", True),
        (b"Text/EVENT-Stream ;charset=utf-8", True),
        (b"text/event-streams", False),
        (b"text/html", False),
    ],
)
def test_media_types_have_no_case(value: bytes, endless: bool) -> None:
    """RFC 9110, section 8.3.1."""
    assert is_event_stream([(b"Content-Type", value)]) is endless


@pytest.mark.parametrize(
    ("status", "given", "phrase"),
    [(404, "", b"Not Found"), (404, "Nope", b"Nope"), (404, "a\x01", b"Not Found"), (799, None, b"")],
)
def test_a_status_has_its_phrase(status: int, given: str | None, phrase: bytes) -> None:
    assert reason_phrase(status, given) == phrase


def part(number: int) -> Any:
    return {"type": "http.request", "body": bytes([number]), "more_body": True}


async def test_an_inbox_holds_its_client_up_when_it_is_full() -> None:
    inbox = Inbox(2)
    await inbox.put(part(1))
    await inbox.put(part(2))
    third = asyncio.create_task(inbox.put(part(3)))
    await asyncio.sleep(0)
    assert not third.done()
    assert await inbox.get() == part(1)
    await third
    assert [await inbox.get(), await inbox.get()] == [part(2), part(3)]


async def test_an_inbox_holds_nobody_up_whose_connection_has_ended() -> None:
    inbox, gone = Inbox(1), {"type": "http.disconnect"}
    await inbox.put(part(1))
    second = asyncio.create_task(inbox.put(part(2)))
    await asyncio.sleep(0)
    await inbox.put(gone)  # type: ignore[arg-type]
    await second
    await inbox.put(part(3))
    assert [await inbox.get(), await inbox.get(), await inbox.get()] == [part(1), gone, gone]


async def test_an_inbox_wakes_its_application() -> None:
    inbox = Inbox(1)
    receiving = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    await inbox.put(part(1))
    assert await receiving == part(1)
