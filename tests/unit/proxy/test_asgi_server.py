"""Hypercorn's protocols as the ASGI lane has them, with applications that fail, on real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from loadbalancer.proxy.asgi.hypercorn_options import HypercornOptions
from loadbalancer.proxy.asgi.server import serve
from loadbalancer.settings import Settings

Application = Callable[[Any, Any, Any], Awaitable[None]]
GET = b"GET / HTTP/1.1\r\nHost: x\r\nCookie: secret\r\n\r\n"


@asynccontextmanager
async def served(app: Application, **settings: Any) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """Serve an application; yields the port, and what stops the server."""
    listener = socket.create_server(("127.0.0.1", 0))
    port, stop = listener.getsockname()[1], asyncio.Event()
    options = HypercornOptions(Settings(**settings), [f"fd://{listener.detach()}"])
    serving = asyncio.create_task(serve(app, options, stop.wait))
    try:
        yield port, stop
    finally:
        stop.set()
        await asyncio.wait_for(serving, 10)


async def asked(port: int, *parts: bytes) -> bytes:
    """Send bytes, and read until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for data in parts:
        writer.write(data)
        await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


async def test_a_fault_of_ours_is_a_500_and_logged_with_its_trace() -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("as it happens")

    with capture_logs() as records:
        async with served(failing) as (port, _):
            answer = await asked(port, GET.replace(b"Cookie", b"Connection: close\r\nCookie"))
    assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert b'"status": "failure"' in answer
    assert b"as it happens" not in answer
    assert [record["event"] for record in records if record["log_level"] == "error"] == [
        "request failed by a fault of the load balancer"
    ]
    assert records[0]["exc_info"]


@pytest.mark.parametrize(
    ("version", "headers", "end"),
    [
        (b"1.1", [(b"content-length", b"9")], b"\r\n\r\nhalf"),
        (b"1.1", [], b"\r\n\r\n4\r\nhalf\r\n"),
        (b"1.0", [(b"content-length", b"9")], b"\r\n\r\nhalf"),
    ],
)
async def test_an_answer_that_fails_midway_does_not_look_whole(
    version: bytes, headers: list[tuple[bytes, bytes]], end: bytes
) -> None:
    async with served(halfway(headers)) as (port, _):
        answer = await asked(port, GET.replace(b"1.1", version))
    assert answer.endswith(end)


async def test_an_answer_that_would_end_with_the_connection_breaks_it() -> None:
    """RFC 9112, section 8: HTTP/1.0 has no other way to tell that the answer is not whole."""
    async with served(halfway([])) as (port, _):
        with pytest.raises(ConnectionResetError):
            await asked(port, GET.replace(b"1.1", b"1.0"))


def halfway(headers: list[tuple[bytes, bytes]]) -> Application:
    """An application that begins an answer and leaves it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    return app


async def test_a_client_that_half_reads_a_refusal_is_read_on() -> None:
    """RFC 9112, section 9.6: the answer can be read, whatever the client still sends."""

    async def refusing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no", "more_body": False})

    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n"
    async with served(refusing) as (port, _):
        assert (await asked(port, head, *[bytes(1_000_000)] * 8)).startswith(b"HTTP/1.1 413 ")


async def test_requests_in_flight_may_end_when_the_server_stops() -> None:
    going, go_on = asyncio.Event(), asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        going.set()
        await go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok", "more_body": False})

    async with served(slow) as (port, stop):
        asking = asyncio.create_task(asked(port, GET))
        await going.wait()
        stop.set()
        await asyncio.sleep(0)
        go_on.set()
        assert (await asking).endswith(b"\r\n\r\nok")


async def test_requests_that_do_not_end_are_cut_off_in_the_end() -> None:
    going = asyncio.Event()

    async def hanging(scope: Any, receive: Any, send: Any) -> None:
        going.set()
        await asyncio.Future()

    async with served(hanging, drain_timeout=0.2) as (port, _):
        asking = asyncio.create_task(asked(port, GET))
        await going.wait()
    await asking


async def test_idle_connections_end_when_the_server_stops() -> None:
    async def ok(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async with served(ok) as (port, stop):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        assert (await reader.readline()).startswith(b"HTTP/1.1 204")
        stop.set()
        await asyncio.wait_for(reader.read(), 5)
        writer.close()
