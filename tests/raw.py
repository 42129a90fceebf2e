"""Sends and receives raw bytes on real sockets, for tests of HTTP on the wire."""

import contextlib
import re
import socket

from tests.harness import LoadBalancer

GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def connect(lb: LoadBalancer, timeout: float = 20) -> socket.socket:
    """Connect to the load balancer; the socket sends each packet at once (`TCP_NODELAY`)."""
    connection = socket.create_connection(("127.0.0.1", lb.port), timeout=timeout)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Receive bytes until the other side closes."""
    received = b""
    while piece := connection.recv(1 << 16):
        received += piece
    return received


def read_until(connection: socket.socket, end: bytes) -> bytes:
    """Receive bytes until some bytes are among them; the last packet is returned completely."""
    received = b""
    while end not in received:
        piece = connection.recv(1 << 16)
        assert piece, f"the connection ended after {received!r}"
        received += piece
    return received


def talk(lb: LoadBalancer, *parts: bytes) -> bytes:
    """Send the parts one after the other, and receive bytes until the other side closes."""
    with connect(lb) as connection:
        for part in parts:
            connection.sendall(part)
        return read_all(connection)


def push(connection: socket.socket, data: bytes) -> None:
    """Send bytes to a side that may close before it has received all of them."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(data)


def statuses(answers: bytes) -> list[int]:
    """The statuses of some answers, in order."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", answers)]


def targets(answers: bytes) -> list[str]:
    """The targets in answers of the replica `odd`, which describe its requests."""
    return re.findall(r'"target": "([^"]*)"', answers.decode("latin-1"))


def say(
    answer: bytes,
    *lines: bytes,
    method: bytes = b"GET",
    close: bool = True,
    body: bytes = b"",
    version: bytes = b"1.1",
) -> bytes:
    """A request that scripts the answer of `replicas/scripted.py`.

    Args:
        answer: Bytes of the answer.
        lines: Further header lines of the request.
        method: Method of the request.
        close: Whether the request has `Connection: close`.
        body: Body of the request.
        version: HTTP version of the request.
    """
    fields = [b"Host: x", b"X-Say: " + answer.hex().encode(), *lines]
    if close:
        fields.append(b"Connection: close")
    return b"%b /said HTTP/%b\r\n%b\r\n\r\n%b" % (method, version, b"\r\n".join(fields), body)
