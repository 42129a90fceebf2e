"""Heartbeats against real sockets."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from loadbalancer.fleet.heartbeat import Heartbeat, Miss, Prober, Ticker
from tests.unit.fleet.fakes import now, run

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answering(raw: bytes) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"GET /beat?deep=1 HTTP/1.1\r\n")
        writer.write(raw)
        writer.close()

    return handle


async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def probe(handler: Handler) -> Heartbeat:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server, Prober("/beat?deep=1", 0.2) as prober:
        return await prober.probe(*server.sockets[0].getsockname()[:2])


@pytest.mark.parametrize("status", [200, 204, 302, 400, 404, 426])
async def test_any_answer_below_500_is_a_good_heartbeat(status: int) -> None:
    assert (
        await probe(answering(b"HTTP/1.1 %d X\r\nLocation: /\r\nContent-Length: 0\r\n\r\n" % status)) is None
    )


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (answering(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n"), "heartbeat answered 503"),
        (mute, "no heartbeat within 0.2 s"),
        (answering(b""), "heartbeat broken: Server disconnected"),
        (answering(b"garbage\r\n\r\n"), "heartbeat broken: 400"),
    ],
)
async def test_a_miss_comes_with_its_reason(handler: Handler, reason: str) -> None:
    miss = await probe(handler)
    assert isinstance(miss, Miss)
    assert miss.reason.startswith(reason)
    assert miss.timed_out == reason.startswith("no heartbeat")


async def test_a_refused_connection_is_a_miss() -> None:
    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()[:2]
    server.close()
    await server.wait_closed()
    async with Prober("/", 0.5) as prober:
        assert await prober.probe(*address) == Miss("heartbeat refused")


def test_ticks_keep_their_rate_and_skip_missed_ticks() -> None:
    async def main() -> list[float]:
        ticker = Ticker(1.0)
        times = []
        for work in (0.0, 0.5, 2.6, 0.0, 0.0):
            await ticker.tick()
            times.append(round(now(), 3))
            await asyncio.sleep(work)
        return times

    assert run(main()) == [1.0, 2.0, 3.0, 5.6, 6.6]
