"""Trailers (RFC 9110, section 6.5; RFC 9112, section 7.1.2): which pass, and how many."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import LoadBalancer, eventually, replica
from tests.raw import LAST, connect, push, read_all, say, statuses, talk

FORBIDDEN = [
    *("X-Forwarded-For", "X_Forwarded_For", "X-Forwarded-Proto", "Forwarded", "X-Real-IP", "X-Request-Id"),
    *("Host", "Cookie", "Authorization", "Content-Type", "Trailer", "TE", "Expect", "Set-Cookie", "Vary"),
]


@pytest.fixture(scope="module")
def lb() -> Iterator[LoadBalancer]:
    """Its replica tells the trailers that it got at `/trailing`."""
    with LoadBalancer("--command", replica("odd"), "--max-body", "1000000", replicas=1) as running:
        yield running


@pytest.fixture(scope="module")
def scripted() -> Iterator[LoadBalancer]:
    with LoadBalancer("--command", replica("scripted"), replicas=1) as running:
        yield running


def chunked(target: str, trailers: bytes) -> bytes:
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    return head.encode() + b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n"


def arrived(lb: LoadBalancer, trailers: bytes) -> list[str]:
    """The trailers of a request as the replica gets them."""
    answer = talk(lb, chunked("/trailing", trailers))
    assert statuses(answer) == [200]
    return answer.partition(b"\r\n\r\n")[2].decode().lower().splitlines()


def test_trailers_of_a_request_pass(lb: LoadBalancer) -> None:
    assert arrived(lb, b"X-Sum: 5d41\r\nx-sum: again\r\n") == ["x-sum: 5d41", "x-sum: again"]


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_must_be_known_before_the_body_does_not_pass_after_it(lb: LoadBalancer, name: str) -> None:
    """RFC 9110, section 6.5.1."""
    assert arrived(lb, f"{name}: 10.0.0.1\r\nX-Sum: 1\r\n".encode()) == ["x-sum: 1"]


@pytest.mark.parametrize("name", [b"Content-Length", b"Transfer-Encoding"])
def test_no_trailer_frames_a_request_anew(lb: LoadBalancer, name: bytes) -> None:
    """RFC 9112, section 6: refused, or dropped, and never passed on."""
    answer = talk(lb, chunked("/trailing", name + b": 5\r\n"))
    assert statuses(answer) == [400] or answer.endswith(b"\r\n\r\n")


def test_trailers_of_an_answer_pass_and_are_bounded_in_what_they_say(scripted: LoadBalancer) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
    said = head + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nSet-Cookie: a=1\r\nDate: now\r\nX-Forwarded-For: y\r\n\r\n"
    answer = talk(scripted, say(said))
    assert answer.endswith(b"\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n")
    assert b"Trailer: X-Sum" in answer.partition(b"\r\n\r\n")[0]


def test_trailers_do_not_reach_those_who_know_none(scripted: LoadBalancer) -> None:
    """HTTP/1.0 has no chunks (RFC 9112, section 6.1)."""
    said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
    answer = talk(scripted, say(said, version=b"1.0", close=False))
    assert answer.endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize("line", [b"X-T: " + b"t" * 1000 + b"\r\n", b"X: \r\n", b"x" * 1000])
def test_endless_trailers_are_a_431_and_take_no_memory(lb: LoadBalancer, line: bytes) -> None:
    """22 MB of them, where `--max-head` bounds all heads."""
    before = memory(lb)
    with connect(lb) as connection:
        push(connection, chunked("/trailing", b"")[:-2] + line * (22_000_000 // len(line)))
        assert statuses(read_all(connection)) == [431]
    assert memory(lb) - before < 10
    eventually(lambda: lb.state()["Server-1"]["in_flight"] == 0, "the request has ended")
    assert statuses(talk(lb, LAST)) == [200]


def test_endless_extensions_of_chunks_are_bounded_as_well(lb: LoadBalancer) -> None:
    """RFC 9112, section 7.1.1."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(lb) as connection:
        push(connection, head + b"5;" + b"x" * 1_000_000)
        assert statuses(read_all(connection)) == [431]


def memory(lb: LoadBalancer) -> int:
    """The most memory that the load balancer has ever used, in MiB."""
    status = Path(f"/proc/{lb.process.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) >> 10
