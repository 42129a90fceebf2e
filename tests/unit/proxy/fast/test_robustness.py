"""What the fast lane survives: messages cut where it hurts, and other ends that take or give nothing."""

import asyncio
import math
import socket

import pytest
from structlog.testing import capture_logs

from loadbalancer.proxy.fast.client import ClientConnection
from loadbalancer.proxy.fast.replica_side import ReplicaSide, ReplicaState
from loadbalancer.proxy.fast.upstream import UpstreamConnection
from tests.harness import PATIENCE
from tests.raw import GET, LAST
from tests.unit.fleet.fakes import scenario, until
from tests.unit.proxy.fast.rig import Rig, Wire, rig

UPGRADE = b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.mark.parametrize(
    "both",
    [b"Content-Length: 9\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\nContent-Length: 9"],
)
def test_both_lengths_mean_the_same_wherever_the_head_is_cut(both: bytes) -> None:
    """RFC 9112, section 6.3."""
    head = b"HTTP/1.1 200 OK\r\n" + both + b"\r\nX-A: 1\r\n\r\n"
    for cut in range(1, len(head)):
        side = ReplicaSide("S1")
        side.asked("GET")
        first = side.receive(head[:cut])
        second = side.receive(head[cut:] + b"2\r\nok\r\n0\r\n\r\n")
        assert (first.error, second.error, second.body, second.whole) == (None, None, b"ok", True), cut


@scenario
async def test_a_short_answer_that_is_collected_goes_on_the_general_way() -> None:
    """The client takes no more for a moment, while a part of the answer has come."""
    async with rig() as lane:
        replica, client = lane.warm(), lane.client()
        client.send(GET)
        replica.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")
        client.protocol.pause_writing()
        client.protocol.resume_writing()
        replica.send(b"lf")
        assert client.written.endswith(b"\r\n\r\nhalf")


@scenario
async def test_a_408_to_a_request_that_cannot_be_sent_again_is_its_answer() -> None:
    """RFC 9110, section 15.5.9: the replica has waited for the request itself, not for the next one."""
    async with rig() as lane:
        replica, client = lane.warm(), lane.client()
        client.send(GET)
        replica.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        client.send(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nha")
        replica.send(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 4\r\n\r\nlate")
        assert len(lane.opened) == 1, "on the connection that was used before"
        assert b"HTTP/1.1 408 Request Timeout\r\n" in client.written
        assert client.written.endswith(b"\r\n\r\nlate")


class Unread(Wire):
    """A client that reads nothing: what was written to it stays, so that closing does not end it."""

    def __init__(self) -> None:
        super().__init__()
        self.reset = False

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.reset = True
        self.lose()


def unread(lane: Rig) -> tuple[Unread, ClientConnection]:
    wire, connection = Unread(), ClientConnection(lane.lane)
    wire.connect(connection)
    return wire, connection


@scenario
async def test_a_client_that_never_reads_its_answer_is_let_go_after_two_patiences() -> None:
    async with rig() as lane:
        lane.warm()
        client, connection = unread(lane)
        client.send(GET)
        lane.opened[0].send(OK)
        connection.expired()
        assert (client.closed, client.reset) == (True, False)
        assert connection.deadline < math.inf, "it is looked at again"
        connection.expired()
        assert client.reset


@scenario
async def test_a_last_answer_is_not_reset_when_something_comes_behind_its_request() -> None:
    """RFC 9112, section 9.6: the kernel would throw away what a slow client has not taken yet."""
    async with rig() as lane:
        lane.warm()
        client, connection = unread(lane)
        client.send(LAST + b"\r\n")
        lane.opened[0].send(OK)
        assert client.half_closed
        connection.expired()
        assert (client.closed, client.reset) == (True, False)
        connection.expired()
        assert client.reset


@scenario
async def test_the_end_of_a_tunnel_waits_for_the_client_no_longer_than_for_an_answer() -> None:
    async with rig() as lane:
        lane.warm()
        client, connection = unread(lane)
        client.send(UPGRADE)
        lane.opened[0].send(SWITCH + b"hello")
        connection.eof_received()
        lane.opened[0].end()
        await lane.settle()
        assert (client.closed, client.reset) == (True, False)
        assert connection.deadline < math.inf, "it is looked at again"
        connection.expired()
        assert client.reset


@scenario
async def test_a_client_that_has_no_more_before_the_tunnel_begins_has_none_in_it() -> None:
    async with rig() as lane:
        replica, client = lane.warm(), lane.client()
        client.send(UPGRADE + b"all that I say")
        client.end()
        replica.send(SWITCH)
        assert replica.written.endswith(b"all that I say")
        assert replica.half_closed
        replica.end()
        assert (client.closed, replica.closed) == (True, True)


@scenario
async def test_who_ends_a_stream_of_events_has_gone_whatever_it_has_not_read() -> None:
    async with rig() as lane:
        lane.warm()
        client, connection = unread(lane)
        client.send(GET)
        lane.opened[0].send(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
        )
        assert not connection.eof_received()
        assert client.reset
        await lane.settle()
        assert lane.opened[0].lost


def test_a_replica_that_answers_early_and_reads_nothing_keeps_no_connection() -> None:
    """RFC 9112, section 9.5: what was written of the request would wait for it for ever."""
    asyncio.run(early_answer())


async def early_answer() -> None:
    writers: list[asyncio.StreamWriter] = []
    made: list[UpstreamConnection] = []
    loop = asyncio.get_running_loop()

    async def read_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writers.append(writer)

    async with asyncio.timeout(PATIENCE), rig() as lane:
        replica = await asyncio.start_server(read_nothing, "127.0.0.1", 0)
        pool = lane.lane.pool(lane.upstreams[0])

        async def connect() -> UpstreamConnection:
            address = replica.sockets[0].getsockname()
            made.append((await loop.create_connection(lambda: UpstreamConnection(pool), *address))[1])
            return made[0]

        pool.open = connect  # type: ignore[method-assign]
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        await lane.lane.listen(listener)
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 90000000\r\n\r\n" + bytes(30_000_000))
        await until(lambda: bool(writers and made and made[0].write_held), within=PATIENCE)
        writers[0].write(OK)
        await reader.readuntil(b"\r\n\r\nok")
        await until(lambda: made[0].state is ReplicaState.CLOSED, within=PATIENCE)
        writer.close()
        writers[0].close()
        replica.close()


class Defective(ClientConnection):
    """A client's connection that fails when its time is up."""

    def expired(self) -> None:
        raise RuntimeError("nobody foresaw this")


@scenario
async def test_a_defect_on_one_connection_leaves_the_time_limits_of_the_others() -> None:
    async with rig(idle_timeout=1) as lane:
        defective, usual = Wire(), Wire()
        with capture_logs() as records:
            defective.connect(Defective(lane.lane))
            await until(lambda: defective.lost, within=5)
            usual.connect(ClientConnection(lane.lane))
            await until(lambda: usual.lost, within=5)
        assert [record["event"] for record in records] == ["defect"]


@scenario
async def test_an_answer_of_our_own_ends_a_connection_of_http_1_0() -> None:
    """RFC 9112, section 9.3: without `Connection: keep-alive` such a client waits for the end."""
    async with rig(replicas=0) as lane:
        client = lane.client()
        client.send(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        await lane.settle()
        assert client.written.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nconnection: close\r\n" in client.written
        assert client.closed
