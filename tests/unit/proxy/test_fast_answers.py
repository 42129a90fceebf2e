"""Mutated answers, cut anywhere: a client gets the same however they come, or learns that they are bad."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadbalancer.fleet.publication import Publication
from loadbalancer.proxy.accounting import Accounting
from loadbalancer.proxy.fast.client import ClientConnection
from loadbalancer.proxy.fast.lane import FastLane
from loadbalancer.proxy.fast.pool import Pool
from loadbalancer.proxy.fast.upstream import UpstreamConnection
from loadbalancer.routing.upstream import Upstream
from loadbalancer.settings import Settings
from loadbalancer.telemetry.metrics import Metrics
from tests.fuzzing import ANSWERS, cut, mutated, tried
from tests.unit.fleet.fakes import make_snapshot
from tests.unit.proxy.test_fast_parsing import Transport, turns

GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"


class UpstreamTransport(Transport):
    """Tells its connection when it was closed, as a real one does."""

    connection: UpstreamConnection

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    close = write_eof = abort


@dataclass
class Reading:
    """What a client makes of what it got."""

    answers: list[tuple[int, bytes]] = field(default_factory=list)
    complete: bool = False
    """Whether the last answer is whole."""
    closed: bool = False


def read(data: bytes, closed: bool) -> Reading:
    """Read what the client got; it must be HTTP, whatever the replica has sent."""
    reading = Reading(closed=closed)

    class Parsed:
        body = b""

        def on_message_begin(self) -> None:
            Parsed.body = b""
            reading.complete = False

        def on_body(self, part: bytes) -> None:
            Parsed.body += part

        def on_headers_complete(self) -> None:
            reading.answers.append((parser.get_status_code(), b""))

        def on_message_complete(self) -> None:
            reading.answers[-1] = (parser.get_status_code(), Parsed.body)
            reading.complete = True

    parser = httptools.HttpResponseParser(Parsed())
    parser.feed_data(data)
    if reading.answers and not reading.complete:
        reading.answers[-1] = (parser.get_status_code(), Parsed.body)
    return reading


async def refuse(pool: Pool) -> Any:
    raise ConnectionRefusedError("nobody listens")


def exchanged(parts: Sequence[bytes], *, times: int = 1, ends: bool = True) -> list[Reading]:
    """What clients, one after the other, get when a replica sends these parts and then closes."""

    async def main() -> list[Reading]:
        upstream = Upstream("S1", 1, "127.0.0.1", 1)
        accounting = Accounting(Metrics(), access_log=False)
        source = Publication(make_snapshot([upstream]), lambda: False)
        options = Settings.model_validate({"eject_after": 0, "queue_timeout": 0})
        readings = []
        async with FastLane(source, options, accounting, "/nowhere", rng=random.Random(1)) as lane:
            pool = lane.pool(upstream)
            pool.open = lambda: refuse(pool)  # type: ignore[method-assign]
            for _ in range(times):
                client, transport = ClientConnection(lane), Transport()
                client.connection_made(transport)  # type: ignore[arg-type]
                connection, behind = UpstreamConnection(pool), UpstreamTransport()
                behind.connection = connection
                connection.connection_made(behind)  # type: ignore[arg-type]
                pool.give_back(connection)
                client.data_received(GET)
                for part in parts:
                    if not behind.closed:
                        connection.data_received(part)
                    await turns(1)
                if ends and not behind.closed:
                    behind.closed = True
                    connection.connection_lost(None)
                await turns(20)
                readings.append(read(transport.written, transport.closed))
                client.connection_lost(None)
                pool._idle.clear()
            assert upstream.in_flight == 0
            assert accounting.metrics.in_flight == 0
        return readings

    return asyncio.run(main())


@pytest.mark.parametrize("data", ANSWERS, ids=range(len(ANSWERS)))
def test_an_answer_is_the_same_wherever_it_is_split(data: bytes) -> None:
    (whole,) = exchanged([data])
    assert whole.complete
    for place in range(1, len(data)):
        assert exchanged([data[:place], data[place:]]) == [whole], place
    assert exchanged([data[n : n + 1] for n in range(len(data))]) == [whole], "byte by byte"


@pytest.mark.parametrize("data", ANSWERS, ids=range(len(ANSWERS)))
def test_an_answer_that_is_known_again_is_the_same(data: bytes) -> None:
    first, *others = exchanged([data], times=4)
    assert others == [first] * 3


@tried(400)
@given(mutated(ANSWERS, most=1), st.lists(st.integers(0, 200), max_size=5))
@example(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 000 OK\r\nContent-Length: 2\r\n\r\nok", [])
def test_bad_answers_are_read_the_same_wherever_they_are_cut(data: bytes, cuts: list[int]) -> None:
    (whole,) = exchanged([data])
    (parted,) = exchanged(cut(data, cuts))
    assert whole.answers or whole.closed, "a client gets an answer, or knows that there is none"
    final = [answer for answer in whole.answers if answer[0] >= 200]
    assert len(final) <= 1, "one request, one answer"
    if whole.complete and parted.complete:
        statuses = {status for status, _ in (whole.answers[-1], parted.answers[-1])}
        # What comes in one packet with something bad may be refused as a whole; the head of it may have been
        # passed on already when the bad part comes alone.
        assert whole.answers[-1] == parted.answers[-1] or 502 in statuses
    if not whole.complete:
        assert whole.closed, "what is not whole is broken off"
    if not parted.complete:
        assert parted.closed


@tried(150)
@given(mutated(ANSWERS, most=2))
def test_what_was_read_once_is_read_the_same_again(data: bytes) -> None:
    first, *others = exchanged([data], times=3)
    for other in others:
        assert other == first
