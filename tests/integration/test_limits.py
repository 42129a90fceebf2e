"""The bounds on what clients may ask, each an option: seen from outside, at the bound and one beyond it."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests.harness import LoadBalancer, eventually, replica


@pytest.fixture(scope="module")
def lb() -> Iterator[LoadBalancer]:
    sizes = ("--max-head", "1024", "--max-headers", "5", "--max-target", "100", "--max-body", "1000")
    with LoadBalancer("--command", replica("odd"), *sizes, replicas=1) as running:
        yield running


@pytest.fixture(scope="module", params=["fast", "asgi"])
def either(request: pytest.FixtureRequest) -> Iterator[LoadBalancer]:
    options = ("--lane", request.param, "--command", replica("odd"), "--max-body", "1000")
    with LoadBalancer(*options, replicas=1) as running:
        yield running


def say(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(data)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(1 << 16):
                received += piece
        return received


def status(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


def get(target: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]).encode()


def test_the_target(lb: LoadBalancer) -> None:
    assert status(say(lb.port, get("/" + "x" * 99))) == 200
    answer = say(lb.port, get("/" + "x" * 100))
    assert status(answer) == 414
    assert b"the request target is longer than 100 bytes" in answer


def test_the_number_of_headers(lb: LoadBalancer) -> None:
    assert status(say(lb.port, get("/x", *["A: 1"] * 3))) == 200
    answer = say(lb.port, get("/x", *["A: 1"] * 4))
    assert status(answer) == 431
    assert b"there are more than 5 headers" in answer


def test_the_size_of_the_head(lb: LoadBalancer) -> None:
    assert status(say(lb.port, get("/x", "A: " + "a" * 900))) == 200
    answer = say(lb.port, get("/x", "A: " + "a" * 1100))
    assert status(answer) == 431
    assert b"the head is longer than 1024 bytes" in answer


@pytest.mark.parametrize("chunked", [False, True])
def test_the_size_of_the_body(either: LoadBalancer, chunked: bool) -> None:
    def post(size: int) -> bytes:
        head = b"POST /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        if not chunked:
            return head + b"Content-Length: %d\r\n\r\n%b" % (size, b"x" * size)
        half = size // 2
        pieces = b"".join(b"%x\r\n%b\r\n" % (n, b"x" * n) for n in (half, size - half))
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n"

    assert b'"length": 1000' in say(either.port, post(1000))
    answer = say(either.port, post(1001))
    assert status(answer) == 413
    assert b"<Error> the body is longer than 1000 bytes" in answer
    state = either.state()["Server-1"]
    assert (state["state"], state["in_flight"]) == ("up", 0)


def test_a_body_that_comes_in_many_parts_is_measured_as_a_whole(either: LoadBalancer) -> None:
    for _ in range(6):  # were it held against the replica, five would take it out of rotation
        with socket.create_connection(("127.0.0.1", either.port), timeout=20) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(b"PUT /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            answer = b""
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(11):
                    connection.sendall(b"64\r\n" + b"x" * 100 + b"\r\n")
                answer = connection.recv(1 << 16)
            assert not answer or status(answer) == 413
    eventually(lambda: either.state()["Server-1"]["in_flight"] == 0, "nothing is in flight")
    assert either.call("GET", "/x").status == 200
    assert either.state()["Server-1"]["state"] == "up"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--max-connections", b"there are 3 connections already"),
        ("--max-client-connections", b"there are 3 connections from 127.0.0.1 already"),
    ],
)
def test_the_number_of_connections(option: str, words: bytes) -> None:
    with (
        LoadBalancer(option, "3", "--command", replica("odd"), replicas=1) as lb,
        contextlib.ExitStack() as held,
    ):
        connections = [
            held.enter_context(socket.create_connection(("127.0.0.1", lb.port), timeout=20)) for _ in range(3)
        ]
        for connection in connections:
            connection.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
            assert status(connection.recv(1 << 16)) == 200
        with socket.create_connection(("127.0.0.1", lb.port), timeout=20) as refused:
            answer = refused.recv(1 << 16)
            assert status(answer) == 503
            assert words in answer
            assert refused.recv(1) == b""
        connections.pop().close()

        def there_is_room_again() -> bool:
            return say(lb.port, get("/x")).startswith(b"HTTP/1.1 200")

        eventually(there_is_room_again, "a place is free")
