"""Bytes on real sockets, for tests of what is said on the wire."""

import contextlib
import re
import socket

from tests.harness import LoadBalancer

GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def connect(lb: LoadBalancer, timeout: float = 20) -> socket.socket:
    """A connection whose packets leave at once."""
    connection = socket.create_connection(("127.0.0.1", lb.port), timeout=timeout)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """Everything until the other side ends."""
    received = b""
    while piece := connection.recv(1 << 16):
        received += piece
    return received


def read_until(connection: socket.socket, end: bytes) -> bytes:
    """Everything up to some bytes, and what came with them."""
    received = b""
    while end not in received:
        piece = connection.recv(1 << 16)
        assert piece, f"the connection ended after {received!r}"
        received += piece
    return received


def talk(lb: LoadBalancer, *parts: bytes) -> bytes:
    """Send the parts one after the other, and read until the other side ends."""
    with connect(lb) as connection:
        for part in parts:
            connection.sendall(part)
        return read_all(connection)


def push(connection: socket.socket, data: bytes) -> None:
    """Send what the other side takes; it may end before it has taken all."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(data)


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", answers)]


def targets(answers: bytes) -> list[str]:
    """What a replica that describes requests was asked for."""
    return re.findall(r'"target": "([^"]*)"', answers.decode("latin-1"))


def say(
    answer: bytes,
    *lines: bytes,
    method: bytes = b"GET",
    close: bool = True,
    body: bytes = b"",
    version: bytes = b"1.1",
) -> bytes:
    """A request that tells `replicas/scripted.py` what to answer."""
    fields = [b"Host: x", b"X-Say: " + answer.hex().encode(), *lines]
    if close:
        fields.append(b"Connection: close")
    return b"%b /said HTTP/%b\r\n%b\r\n\r\n%b" % (method, version, b"\r\n".join(fields), body)
