"""WebSockets through the load balancer, to an echo server that knows nothing of it."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from tests.harness import LoadBalancer, eventually, replica


@pytest.fixture(scope="module", params=["fast", "asgi"])
def lane(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def lb(lane: str) -> Iterator[LoadBalancer]:
    options = ("--lane", lane, "--command", replica("websockets_echo"))
    with LoadBalancer(*options, replicas=2) as running:
        yield running


def url(lb: LoadBalancer) -> str:
    return f"ws://127.0.0.1:{lb.port}/chat?room=1"


async def test_messages_of_both_kinds_are_echoed(lb: LoadBalancer) -> None:
    async with connect(url(lb)) as connection:
        for message in ("text: äöü", b"\x00\xffbytes", "", "x" * 1_000_000):
            await connection.send(message)
            assert await connection.recv() == message


async def test_the_subprotocol_is_the_replicas_choice(lb: LoadBalancer) -> None:
    async with connect(url(lb), subprotocols=[Subprotocol("other"), Subprotocol("echo")]) as connection:
        assert connection.subprotocol == "echo"


async def test_many_are_held_at_once_and_counted(lb: LoadBalancer) -> None:
    connections = await asyncio.gather(*(connect(url(lb)) for _ in range(50)))
    answers = set()
    for connection in connections:
        await connection.send("who are you")
        answers.add(await connection.recv())
    assert answers == {"Server-1", "Server-2"}
    assert sum(one["in_flight"] for one in lb.state().values()) == 50
    await asyncio.gather(*(connection.close() for connection in connections))
    await asyncio.to_thread(
        eventually, lambda: not any(one["in_flight"] for one in lb.state().values()), "all are closed"
    )


async def test_a_replica_that_closes_closes_the_client(lb: LoadBalancer) -> None:
    async with connect(url(lb)) as connection:
        await connection.send("please close")
        with pytest.raises(ConnectionClosed) as closed:
            await connection.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "as you wish")


async def test_the_headers_of_the_replicas_handshake_reach_the_client(lb: LoadBalancer) -> None:
    """RFC 6455, section 4.2.2: a handshake may set cookies."""
    async with connect(url(lb)) as connection:
        assert connection.response is not None
        headers = connection.response.headers
        assert headers.get_all("Set-Cookie") == ["seat=12; Path=/", "row=3"]
        assert len(headers.get_all("Sec-WebSocket-Accept")) == 1
        assert not {"Transfer-Encoding", "Content-Length"} & set(headers), "no framing in a 101"


async def closings(lb: LoadBalancer) -> set[str]:
    """How the replicas have seen connections close so far."""
    seen: set[str] = set()
    for _ in range(12):
        async with connect(url(lb)) as connection:
            await connection.send("who has closed")
            seen.update(str(await connection.recv()).split("\n"))
    return seen


@pytest.mark.parametrize("code", [1000, 1001, 3456])
async def test_a_client_that_closes_closes_the_replica_at_once(lb: LoadBalancer, code: int) -> None:
    """RFC 6455, section 7.1: with its code and its reason."""
    reason = f"done with {code}"
    async with connect(url(lb)) as connection:
        await connection.send("hello")
        await connection.recv()
        begun = time.monotonic()
        await connection.close(code, reason)
        assert time.monotonic() - begun < 0.5, "the client need not wait either"
        await asyncio.to_thread(
            eventually, lambda: not any(one["in_flight"] for one in lb.state().values()), "it is closed"
        )
        assert time.monotonic() - begun < 1.0
    assert f"{code} {reason}" in await closings(lb)


async def test_a_replica_that_breaks_off_breaks_the_clients_connection(lb: LoadBalancer, lane: str) -> None:
    async with connect(url(lb)) as connection:
        await connection.send("please break")
        with pytest.raises(ConnectionClosed) as closed:
            await connection.recv()
    if lane == "fast":
        assert closed.value.rcvd is None, "it tunnels bytes, and says nothing of its own"
    else:
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1014


async def test_a_replica_that_refuses_the_handshake_refuses_it_for_us(lane: str) -> None:
    with LoadBalancer("--lane", lane, "--command", replica("odd"), replicas=1) as odd:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://127.0.0.1:{odd.port}/teapot")
        assert refused.value.response.status_code == 418
        assert refused.value.response.body == b"short and stout"


async def test_without_replicas_the_handshake_is_a_503(lane: str) -> None:
    with LoadBalancer("--lane", lane, replicas=0) as empty:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://127.0.0.1:{empty.port}/")
        assert refused.value.response.status_code == 503
        assert refused.value.response.headers["Retry-After"] == "1"
