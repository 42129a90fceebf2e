"""A defect of ours is logged with its trace, answered 500, and blamed on no replica."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from loadbalancer.proxy.fast.carrier import Carrier
from loadbalancer.proxy.fast.client_side import ClientSide
from loadbalancer.proxy.fast.exchange import Exchange
from loadbalancer.proxy.fast.pool import Pool
from loadbalancer.proxy.fast.replica_side import ReplicaSide
from tests.unit.proxy.fast.rig import Rig, Wire, bare_rig

GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"


def defective(*args: Any, **kwargs: Any) -> Any:
    raise ZeroDivisionError("a defect")


async def defective_later(*args: Any, **kwargs: Any) -> Any:
    raise ZeroDivisionError("a defect")


async def converse(fast: Rig) -> Wire:
    """A request in two parts, and its answer."""
    client = fast.client()
    for part in (GET[:9], GET[9:]):
        if client.open:
            client.send(part)
    await fast.settle()
    if fast.opened and fast.opened[-1].open:
        fast.opened[-1].send(ANSWER)
    await fast.settle()
    return client


@pytest.mark.parametrize(
    ("owner", "name", "defect"),
    [
        (Exchange, "connected", defective),
        (Exchange, "answer_head", defective),
        (ReplicaSide, "receive", defective),
        (Pool, "obtain", defective_later),
    ],
    ids=["as it is sent", "as it is answered", "as an answer is read", "as a connection is made"],
)
async def test_it_is_a_500(monkeypatch: pytest.MonkeyPatch, owner: type[Any], name: str, defect: Any) -> None:
    async with bare_rig() as fast:
        with capture_logs() as records:
            monkeypatch.setattr(owner, name, defect)
            client = await converse(fast)
            monkeypatch.undo()
        [record] = [record for record in records if record["event"] == "defect"]
        assert isinstance(record["exc_info"], ZeroDivisionError), "with its trace"
        assert "Host" not in str(record), "and without headers"
        assert client.written.startswith(b"HTTP/1.1 500 ")
        assert b"defect" not in client.written
        assert b"ZeroDivision" not in client.written
        assert [(one.consecutive_failures, one.in_flight) for one in fast.upstreams] == [(0, 0)]
        assert (await converse(fast)).written.startswith(b"HTTP/1.1 200 "), "and the next request is served"


@pytest.mark.parametrize(
    ("owner", "name"), [(Exchange, "answer_part"), (Exchange, "answer_end")], ids=["part", "end"]
)
async def test_an_answer_that_has_begun_breaks_off(
    monkeypatch: pytest.MonkeyPatch, owner: type[Any], name: str
) -> None:
    async with bare_rig() as fast:
        with capture_logs() as records:
            client = fast.client()
            client.send(GET)
            await fast.settle()
            fast.opened[-1].send(ANSWER[: ANSWER.index(b"\r\n\r\n") + 4])
            monkeypatch.setattr(owner, name, defective)
            fast.opened[-1].send(b"2\r\nok\r\n0\r\n\r\n")
            monkeypatch.undo()
            await fast.settle()
        assert [record["event"] for record in records] == ["defect"]
        assert client.closed
        assert not client.written.endswith(b"0\r\n\r\n"), "the client sees that it is not whole"
        assert [(one.consecutive_failures, one.in_flight) for one in fast.upstreams] == [(0, 0)]


async def test_one_of_reading_a_request_ends_that_connection_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bare_rig() as fast:
        with capture_logs() as records:
            other = fast.client()
            monkeypatch.setattr(ClientSide, "receive", defective)
            client = fast.client()
            client.send(GET[:9])
            monkeypatch.undo()
            await fast.settle()
        assert [record["event"] for record in records] == ["defect"]
        assert client.closed
        assert not other.closed


async def test_one_of_the_quick_way_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bare_rig() as fast:
        fast.warm()
        with capture_logs() as records:
            client = fast.client()
            client.send(GET)
            monkeypatch.setattr("loadbalancer.proxy.fast.upstream.read_answer", defective)
            fast.opened[-1].send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            monkeypatch.undo()
            await fast.settle()
        assert [record["event"] for record in records] == ["defect"]
        assert client.written.startswith(b"HTTP/1.1 500 ")
        assert [(one.consecutive_failures, one.in_flight) for one in fast.upstreams] == [(0, 0)]


async def test_one_after_an_answer_was_sent_gives_no_second_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bare_rig() as fast:
        fast.warm()
        with capture_logs() as records:
            client = fast.client()
            client.send(GET)
            monkeypatch.setattr(fast.upstreams[0].__class__, "release", defective)
            fast.opened[-1].send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            monkeypatch.undo()
            await fast.settle()
        assert [record["event"] for record in records] == ["defect"]
        assert client.closed
        assert client.written.count(b"HTTP/1.1 ") == 1


async def test_one_of_picking_a_replica_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    for parts in ([GET], [GET[:9], GET[9:]]):
        async with bare_rig() as fast:
            with capture_logs() as records:
                monkeypatch.setattr(fast.lane.router, "first", defective)
                client = fast.client()
                for part in parts:
                    client.send(part)
                monkeypatch.undo()
                await fast.settle()
            assert [record["event"] for record in records] == ["defect"]
            assert client.written.startswith(b"HTTP/1.1 500 ")
            assert fast.lane.accounting.metrics.in_flight == 0


async def test_one_of_a_carrier_in_a_task_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bare_rig() as fast:
        with capture_logs() as records:
            monkeypatch.setattr(Carrier, "_send_by", defective)
            client = fast.client()
            client.send(GET)
            for _ in range(30):
                await asyncio.sleep(0)
            monkeypatch.undo()
        assert [record["event"] for record in records] == ["defect"]
        assert client.written.startswith(b"HTTP/1.1 500 ")
