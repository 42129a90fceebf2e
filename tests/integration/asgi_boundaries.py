"""Shared by the tests of the boundaries of the ASGI lane: a scripted replica, and raw requests."""

import json
import re
import socket
from collections.abc import Iterator

from tests.harness import LoadBalancer, replica

GET = b"GET /after HTTP/1.1\r\nHost: x\r\n\r\n"


def serve_scripted() -> Iterator[LoadBalancer]:
    """Run the ASGI lane in front of a replica that says what it is told to."""
    options = ("--lane", "asgi", "--command", replica("scripted"), "--load-factor", "0")
    with LoadBalancer(*options, "--response-timeout", "2", replicas=1) as running:
        yield running
    told = [record for record in running.records if "exception" in record or "Traceback" in str(record)]
    assert not told, "nothing that a client or a replica does ends in a traceback"
    assert "secret" not in str(running.records), "and no header is logged"


def talk(lb: LoadBalancer, data: bytes) -> bytes:
    """Send bytes as they are, and read until the other side closes."""
    with socket.create_connection(("127.0.0.1", lb.port), timeout=20) as connection:
        connection.sendall(data)
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
        return received


def say(answer: bytes, *headers: bytes, method: bytes = b"GET", more: bytes = b"") -> bytes:
    """A request that tells the replica what to answer."""
    lines = [b"X-Say: " + answer.hex().encode(), *headers, b"Connection: close"]
    head = b"%b /said HTTP/1.1\r\nHost: x\r\nCookie: secret=1\r\n%b\r\n\r\n" % (method, b"\r\n".join(lines))
    return head + more


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", answers)]


def seen(lb: LoadBalancer) -> int:
    """How many requests the replica has seen."""
    return len(lb.call("GET", "/seen").json)


def described(answer: bytes) -> dict[str, object]:
    facts: dict[str, object] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return facts
