"""The quick way and the general way make the same of the same bytes, in both directions.

A request goes the quick way when its packet holds all of it, and the general way when it comes in two; so
the same bytes are sent in one packet and in parts, and what arrives at the other side is compared.
"""

import asyncio
from collections.abc import Sequence

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadbalancer.proxy.fast.client_side import ClientSide
from loadbalancer.proxy.fast.quick import Validator, key_finder, read_answer, read_request
from loadbalancer.proxy.fast.replica_side import ReplicaSide
from loadbalancer.routing.keys import KeyRule
from tests.fuzzing import cut, mutated, tried
from tests.unit.proxy.fast.messages import (
    ALL_ANSWERS,
    ALL_REQUESTS,
    BROWSERS,
    Headers,
    Message,
    answers,
    heads,
    read_messages,
)
from tests.unit.proxy.fast.rig import CLIENT, LIMITS, make_peer, read, rig

RULES = ["request-id", "client-ip", "path", "header:X-User", "header:cookie", "cookie:sid", "query:sid"]
USUAL = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
USUAL_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

requests = st.one_of(heads(), mutated(ALL_REQUESTS, most=1))
any_answer = st.one_of(answers(), mutated(ALL_ANSWERS, most=1))
places = st.lists(st.integers(0, 800), max_size=4)


def taken(data: bytes, *, trusted: bool = False) -> bool:
    """Whether a request goes the quick way if it comes in one packet."""
    quick = read_request(data, LIMITS, trusted=trusted) is not None
    return quick and Validator(httptools.HttpRequestParser).accepts(data)


def answer_taken(data: bytes) -> bool:
    quick = isinstance(read_answer(data), tuple)
    return quick and Validator(httptools.HttpResponseParser).accepts(data)


def passed_on(parts: Sequence[bytes], *trusted: str) -> list[Message]:
    """What a replica reads of a request that comes in parts."""

    async def main() -> bytes:
        async with rig(trusted_proxies=trusted) as fast:
            behind = fast.warm()
            client = fast.client()
            for part in parts:
                if not client.open:
                    await fast.settle()  # it may only have been held back
                if client.open:
                    client.send(part)
            await fast.settle()
            client.lose()
            return b"".join(wire.written for wire in [behind, *fast.opened[1:]])

    return read_messages(asyncio.run(main()), httptools.HttpRequestParser)


def handed_back(parts: Sequence[bytes], *, request_in_one: bool) -> tuple[bytes, bool]:
    """What a client gets of an answer that comes in parts, and whether its connection has ended."""

    async def main() -> tuple[bytes, bool]:
        async with rig(response_timeout=60) as fast:
            fast.refuses = True
            behind, client = fast.warm(), fast.client()
            for part in [USUAL] if request_in_one else [USUAL[:5], USUAL[5:]]:
                client.send(part)
            for part in parts:
                if behind.open:
                    behind.send(part)
            behind.lose()
            await fast.settle()
            got = client.written, client.closed or client.half_closed
            client.lose()
            return got

    return asyncio.run(main())


# -- requests -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [*BROWSERS[:2], *BROWSERS[3:], USUAL], ids=["chrome", "curl", "post", "delete", "x"]
)
def test_usual_requests_go_the_quick_way(data: bytes) -> None:
    assert taken(data), "or the tests below say nothing"


@tried(400)
@given(requests, places, st.booleans())
@example(BROWSERS[0], [1], False)
@example(BROWSERS[0].replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n"), [1], False)
@example(
    BROWSERS[0].replace(b"\r\n\r\n", b"\r\nKeep-Alive: x\r\nCookie: k=Keep-Alive: x\r\n\r\n"), [1], False
)
@example(BROWSERS[3].replace(b"hello", b"GET /"), [0, 400, 420], False)
@example(USUAL + USUAL[:20], [1, 30], False)
@example(BROWSERS[3].replace(b"th: 5", b"th: 23") + b"\r\nX-Request-Id: e\r", [1], False)
@example(BROWSERS[3].replace(b"th: 5", b"th: 22") + b"\r\nKeep-Alive: 5\r\n", [1], False)
def test_a_replica_gets_the_same_by_both_ways(data: bytes, cuts: list[int], trusted: bool) -> None:
    proxies = [CLIENT] if trusted else []
    whole = passed_on([data], *proxies)
    parted = passed_on([data[:1], *cut(data[1:], cuts)], *proxies)
    if taken(data, trusted=trusted):
        assert len(whole) == 1
        assert whole[0].whole
    complete = [message for message in whole if message.whole]
    assert complete == [message for message in parted if message.whole]


@tried(600)
@given(requests, st.booleans())
def test_what_goes_the_quick_way_is_a_request_in_general(data: bytes, trusted: bool) -> None:
    if not taken(data, trusted=trusted):
        return
    side = ClientSide(LIMITS, lambda: "id")
    side.peer = make_peer(*[CLIENT] if trusted else [])
    received = side.receive(data)
    assert received.error is None
    assert received.request is not None
    assert (received.whole, side.unread, received.request.upgrade) == (True, False, b"")
    assert not received.request.admin
    quick = read_request(data, LIMITS, trusted=trusted)
    assert quick is not None
    assert (quick[0], quick[4]) == (received.request.target, received.body)


@tried(300)
@given(requests)
@example(b"GET /a?sid=%41 HTTP/1.1\r\nHost: x\r\nCookie: a=b; sid=1\r\nX-User:  u \r\n\r\n")
@example(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n\nx-user: evil\r\n")
def test_keys_are_the_same_by_both_ways(data: bytes) -> None:
    quick = read_request(data, LIMITS, trusted=False)
    if quick is None or not taken(data):
        return
    body = quick[4]
    head = data[: -len(body)] if body else data
    described = read(head).describe()
    for text in RULES:
        rule = KeyRule.parse(text)
        finder = key_finder(rule)
        found = finder(head, quick[0], CLIENT, described.request_id) if finder else described.request_id
        assert found == described.key(rule), text


@pytest.mark.parametrize(
    "path", [b"/rep", b"/lb/x", b"/%72ep", b"/l%62/x", b"/%6Cb", b"/rm?x", b"/a%64d", b"/lb%2fhealth"]
)
def test_admin_paths_never_go_the_quick_way(path: bytes) -> None:
    assert not taken(USUAL.replace(b"/x", path))


# -- answers ------------------------------------------------------------------------------------------


def undated(headers: Headers, data: bytes) -> Headers:
    """Without a date that was added, which is the time."""
    return [header for header in headers if header[0] != b"date" or header[1] in data]


def as_read(data: bytes, got: bytes) -> list[tuple[object, ...]]:
    """What a client reads; of our own answer to nonsense only the status: there may be several reasons."""
    return [
        (one.first, undated(one.headers, data), one.body, one.whole)
        if b'"status": "failure"' not in one.body
        else (one.first, [], b"", one.whole)
        for one in read_messages(got, httptools.HttpResponseParser)
    ]


@pytest.mark.parametrize("data", [USUAL_ANSWER, ALL_ANSWERS[0], ALL_ANSWERS[2], ALL_ANSWERS[7]])
def test_usual_answers_go_the_quick_way(data: bytes) -> None:
    assert answer_taken(data), "or the tests below say nothing"


@tried(400)
@given(any_answer, places)
@example(USUAL_ANSWER, [5, 41])
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nKeep-Alive: 5\r\nX: Keep-Alive: 5\r\n\r\nhello", [])
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: X-Hop, Date\r\nX-Hop: 1\r\n\r\nhello", [])
@example(b"HTTP/1.1 304 OK\r\nDate: \r\nContent-Length: 5\r\n\r\n", [])
def test_a_client_gets_the_same_by_both_ways(data: bytes, cuts: list[int]) -> None:
    quick, _ = handed_back([data], request_in_one=True)
    general, _ = handed_back([data], request_in_one=False)
    parted, ended = handed_back(cut(data, cuts), request_in_one=True)
    assert as_read(data, quick) == as_read(data, general)
    if answer_taken(data):
        assert as_read(data, parted) == as_read(data, quick)
    final = [one for one in as_read(data, parted) if one[0] != (103, "1.1")]
    assert len(final) <= 1, "one request, one answer"
    assert ended or (final and final[0][3]), "what is not whole is broken off"


@tried(500)
@given(any_answer)
def test_what_goes_the_quick_way_back_is_an_answer_in_general(data: bytes) -> None:
    if not answer_taken(data):
        return
    side = ReplicaSide("S1")
    side.asked("GET")
    answered = side.receive(data)
    assert answered.error is None
    assert answered.whole
    assert not answered.informational
    assert side.reuse(), "nothing comes after it"
