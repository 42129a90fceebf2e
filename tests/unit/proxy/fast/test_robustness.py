"""What the fast lane survives: messages cut where it hurts, and other ends that take or give nothing."""

import pytest

from loadbalancer.proxy.fast.replica_side import ReplicaSide
from tests.unit.fleet.fakes import scenario
from tests.unit.proxy.fast.rig import rig

GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"


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
