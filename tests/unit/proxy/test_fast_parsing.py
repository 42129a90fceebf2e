"""Mutated requests, cut anywhere: the fast lane never fails, and reads them the same however they come."""

import asyncio
import contextlib
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadbalancer.errors import LoadBalancerError, UpstreamError
from loadbalancer.proxy.accounting import Accounting
from loadbalancer.proxy.fast.answering import Framing, answer_head
from loadbalancer.proxy.fast.client import ClientConnection
from loadbalancer.proxy.fast.incoming import read_head
from loadbalancer.proxy.fast.lane import FastLane
from loadbalancer.proxy.fast.limits import Limits
from loadbalancer.settings import Settings
from loadbalancer.telemetry.metrics import Metrics
from tests.fuzzing import REQUESTS, cut, mutated, tried
from tests.unit.fleet.fakes import make_snapshot

LIMITS = Limits.of(Settings.model_validate({}))


class Transport:
    """Takes what is written; says when it was closed."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def close(self) -> None:
        self.closed = True

    abort = write_eof = close

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def get_extra_info(self, name: str) -> Any:
        return ("192.0.2.1", 1) if name == "peername" else None


class Nobody:
    """There is no replica, and none is to come: every good request gets a 503."""

    snapshot = make_snapshot(())
    hopeful = False

    async def next_snapshot(self) -> None:
        raise AssertionError("nobody waits")


async def turns(count: int) -> None:
    """Let the loop do what is due, and what is due after that."""
    for _ in range(count):
        await asyncio.sleep(0)


def answered(parts: Sequence[bytes]) -> list[int]:
    """The statuses of the answers to what comes in parts."""

    async def main() -> list[int]:
        accounting = Accounting(Metrics(), access_log=False)
        async with FastLane(
            Nobody(), Settings.model_validate({}), accounting, "/nowhere", rng=random.Random(1)
        ) as lane:
            client, transport = ClientConnection(lane), Transport()
            client.connection_made(transport)  # type: ignore[arg-type]
            for part in parts:
                if not transport.closed:
                    client.data_received(part)
                await turns(20)
            statuses = re.findall(rb"HTTP/1\.1 (\d{3}) [^\r]*\r\n", transport.written)
            client.connection_lost(None)
            return [int(status) for status in statuses]

    return asyncio.run(main())


@tried(400)
@given(mutated(REQUESTS), st.lists(st.integers(0, 400), max_size=6))
@example(REQUESTS[1] * 3, [1, 50, 80])
@example(REQUESTS[0] + REQUESTS[2].replace(b"5\r\nhello", b"\x005\r\nhello"), [32])
def test_requests_are_read_the_same_wherever_they_are_cut(data: bytes, cuts: list[int]) -> None:
    whole, parted = answered([data]), answered(cut(data, cuts))
    assert set(whole) <= {100, 400, 408, 414, 431, 501, 503}
    # A request is answered as soon as its head has come, here with a 503, and the connection ends if its
    # body has not come by then: so it depends on the cuts whether a bad body is ever looked at.
    one, other = ([status for status in statuses if status != 100] for statuses in (whole, parted))
    length = min(len(one), len(other))
    assert one[: length - 1] == other[: length - 1]
    assert one[length - 1 : length] == other[length - 1 : length] or {one[length - 1], other[length - 1]} == {
        400,
        503,
    }
    assert length or not one


@pytest.mark.parametrize("data", REQUESTS[:7])
def test_good_requests_are_all_understood(data: bytes) -> None:
    assert [status for status in answered([data]) if status != 100] == [503]


@pytest.mark.parametrize("data", REQUESTS, ids=range(len(REQUESTS)))
def test_a_request_is_the_same_wherever_it_is_split(data: bytes) -> None:
    whole = answered([data])
    for place in range(1, len(data)):
        assert answered([data[:place], data[place:]]) == whole, place
    assert answered([data[n : n + 1] for n in range(len(data))]) == whole, "byte by byte"


def test_no_head_reaches_a_replica_but_what_was_parsed() -> None:
    incoming = read_head(
        b"GET",
        b"http://shop.example/p?q=1",
        "1.1",
        [
            (b"Host", b"other"),
            (b"Connection", b"close, X-Hop"),
            (b"X-Hop", b"1"),
            (b"X-Forwarded-For", b"10.0.0.1"),
            (b"X-Forwarded-Proto", b"gopher"),
            (b"X-Kept", b" padded \t"),
        ],
        LIMITS,
        scheme=b"http",
        keep_alive=False,
        upgrade=False,
    )
    assert incoming.outgoing == (
        b"GET /p?q=1 HTTP/1.1\r\nhost: shop.example\r\nx-kept: padded\r\nx-forwarded-proto: http\r\n"
        b"x-forwarded-host: shop.example\r\n"
    )
    assert incoming.hops == b"", "a stranger's claim"


@pytest.mark.parametrize(
    ("headers", "framing", "until_close"),
    [
        ([(b"Content-Length", b"3")], Framing.LENGTH, False),
        ([(b"Transfer-Encoding", b"Chunked")], Framing.CHUNKED, False),
        ([], Framing.CHUNKED, True),
    ],
)
def test_answers_are_framed_anew(
    headers: list[tuple[bytes, bytes]], framing: Framing, until_close: bool
) -> None:
    head = answer_head(200, b"OK", headers, method="GET", http_1_1=True)
    assert (head.framing, head.until_close) == (framing, until_close)
    assert answer_head(200, b"OK", headers, method="HEAD", http_1_1=True).framing is Framing.NONE


@pytest.mark.parametrize(
    "headers",
    [
        [(b"Transfer-Encoding", b"gzip, chunked")],
        [(b"Transfer-Encoding", b"identity")],
        [(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")],
        [(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"3")],
    ],
)
def test_answers_whose_end_is_unclear_are_refused(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(UpstreamError):
        answer_head(200, b"OK", headers, method="GET", http_1_1=True)


@tried(300)
@given(
    st.binary(max_size=8),
    st.binary(max_size=30),
    st.sampled_from(["1.1", "1.0", "0.9", "2.0"]),
    st.lists(
        st.tuples(st.sampled_from([b"Host", b"Expect", b"Transfer-Encoding", b"X"]), st.binary(max_size=12)),
        max_size=5,
    ),
)
def test_reading_a_head_fails_only_in_words(
    method: bytes, target: bytes, version: str, headers: list[tuple[bytes, bytes]]
) -> None:
    with contextlib.suppress(LoadBalancerError):
        read_head(
            method if method.isascii() else b"GET",
            target,
            version,
            headers,
            LIMITS,
            scheme=b"http",
            keep_alive=True,
            upgrade=False,
        )
