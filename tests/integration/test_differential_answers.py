"""Odd answers, upgrades and early final answers, side by side with nginx before the same replica.

A client reads the same of what both pass on. Left out is that nginx sends a 101 on to whoever gets it; here
it must have been asked for (RFC 9110, section 15.2.2).
"""

import contextlib
import re
import shutil
from collections.abc import Iterator

import httptools
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from tests.fuzzing import tried
from tests.integration.test_differential import Both, say, side_by_side
from tests.raw import say as asking_for
from tests.unit.proxy.fast.messages import read_messages

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")

STATUS_LINES = [
    *(b"HTTP/1.1 200 OK", b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 Not Modified", b"HTTP/1.0 200 OK"),
    *(b"HTTP/1.1 404 Not Found", b"HTTP/1.1 503 Busy", b"HTTP/1.1 200", b"HTTP/1.1 200 ", b"HTTP/1.1 099 X"),
    *(b"HTTP/1.1 2000 OK", b"HTTP/1.1 20 OK", b"HTTP/2.0 200 OK", b"http/1.1 200 OK", b"HTTP/1.1  200 OK"),
]

LINES = [
    *(b"Content-Length: 5", b"Content-Length: 0", b"Content-Length: 05", b"Content-Length: +5"),
    *(b"Content-Length: 5, 5", b"Content-Length : 5", b"Content-Length: 5 ", b"content-length:5"),
    *(b"Content-Length: 50", b"Content-Length: 0x5", b"Content_Length: 5"),
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: Chunked", b"Transfer-Encoding: gzip, chunked"),
    *(b"Transfer-Encoding: identity", b"Transfer-Encoding : chunked", b"Transfer_Encoding: chunked"),
    *(b"Connection: close", b"Connection: keep-alive", b"Keep-Alive: timeout=5", b"Trailer: X-Sum"),
    *(b"X-A: b", b"X-A:", b"X-A: \xff", b" folded", b"NoColon", b"Content-Type: text/event-stream"),
]

BODIES = [
    *(b"", b"hello", b"hello, more", b"5\r\nhello\r\n0\r\n\r\n", b"5;a=b\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"),
    *(b"5\nhello\n0\n\n", b"05\r\nhello\r\n00\r\n\r\n", b"+5\r\nhello\r\n0\r\n\r\n", b"5\r\nhell"),
    *(b"FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n", b"5\r\nhelloX\r\n0\r\n\r\n"),
]

HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"

Reading = tuple[int, bytes, bool]
"""Status and body of a final answer, and whether it is whole."""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Before a replica that answers what it is told."""
    with side_by_side(tmp_path_factory.mktemp("nginx"), "scripted") as running:
        yield running


def reading(answer: bytes) -> Reading | None:
    """What a client makes of the final answer; None if there is none, or the proxy itself refuses."""
    with contextlib.suppress(httptools.HttpParserError):
        final = [
            one
            for one in read_messages(answer, httptools.HttpResponseParser)
            if one.first and one.first[0] > 199
        ]
        if final and final[0].first[0] not in (400, 502, 504):
            return final[0].first[0], final[0].body, final[0].whole
    return None


@st.composite
def odd_answers(draw: st.DrawFn) -> bytes:
    lines = draw(st.lists(st.sampled_from(LINES), max_size=3))
    if draw(st.booleans()):
        lines = [draw(st.sampled_from(LINES[:1] + LINES[11:12])), *lines]
    hint = draw(st.sampled_from([b""] * 3 + [HINT]))
    end = draw(st.sampled_from([b"\r\n"] * 8 + [b"\n"]))
    return (
        hint
        + end.join([draw(st.sampled_from(STATUS_LINES)), *lines, b"", b""])
        + draw(st.sampled_from(BODIES))
    )


@tried(60, suppress_health_check=list(HealthCheck))
@given(odd_answers(), st.sampled_from([b"1.1", b"1.1", b"1.0"]))
@example(
    b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"1.1",
)
@example(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, more", b"1.1")
@example(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhell", b"1.1")
def test_a_client_reads_of_an_answer_what_nginx_has_it_read(
    told: Both, answer: bytes, version: bytes
) -> None:
    asked = asking_for(answer, b"X-Then: close", version=version)
    ours, nginx = reading(say(told.ours, asked)), reading(say(told.nginx, asked))
    if ours is None or nginx is None:
        return
    if ours[2] or version == b"1.0":
        assert ours[:2] == nginx[:2]
    else:  # what broke off: how much of it came through is nobody's promise
        assert ours[0] == nginx[0]
        assert not nginx[2] or b"\r\ntransfer-encoding" not in answer.lower()


@pytest.mark.parametrize("line", STATUS_LINES[:6])
@pytest.mark.parametrize("framing", [LINES[0], LINES[11]])
def test_plain_answers_are_passed_on_by_both(told: Both, line: bytes, framing: bytes) -> None:
    bodiless = line.split(b" ")[1] in (b"204", b"304")
    body = b"" if bodiless else b"hello" if framing is LINES[0] else b"5\r\nhello\r\n0\r\n\r\n"
    asked = asking_for(b"\r\n".join([line, framing, b"", b""]) + body)
    ours = reading(say(told.ours, asked))
    assert ours is not None, "or the test above says nothing"
    assert ours == reading(say(told.nginx, asked))


# -- upgrades -----------------------------------------------------------------------------------------

ASKED = [
    (b"Connection: Upgrade", b"Upgrade: echo"),
    (b"Connection: keep-alive, upgrade", b"Upgrade: Echo"),
    (b"Connection: upgrade", b"Upgrade: websocket, echo"),
    (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAM"),
    (b"Upgrade: echo",),
    (b"Connection: Upgrade",),
]

AGREED = [
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\nX-A: b\r\n\r\n",
    b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: other\r\nContent-Length: 2\r\n\r\nno",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
]


@tried(20, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(ASKED),
    st.sampled_from(AGREED),
    st.sampled_from([b"", b"\x00tunnelled", b"HTTP/1.1 200 OK\r\n\r\n"]),
)
def test_an_upgrade_is_the_tunnel_that_nginx_makes(
    told: Both, asked: tuple[bytes, ...], agreed: bytes, after: bytes
) -> None:
    data = asking_for(agreed + (after if b" 101 " in agreed else b""), *asked, b"X-Then: close", close=False)
    ours, nginx = say(told.ours, data), say(told.nginx, data)
    if b"HTTP/1.1 101 " in ours[:13]:
        assert any(line.lower() in (b"upgrade: echo", b"upgrade: websocket, echo") for line in asked)
        assert b"HTTP/1.1 101 " in nginx[:13]
        assert ours.partition(b"\r\n\r\n")[2] == nginx.partition(b"\r\n\r\n")[2] == after
    elif b" 101 " not in agreed:
        assert reading(ours) == reading(nginx) != None  # noqa: E711


def test_a_tunnel_is_made_by_both(told: Both) -> None:
    data = asking_for(AGREED[0] + b"after", *ASKED[0], b"X-Then: close", close=False)
    for port in (told.ours, told.nginx):
        assert re.fullmatch(rb"HTTP/1\.1 101 .*\r\n\r\nafter", say(port, data), re.DOTALL)


# -- early final answers ------------------------------------------------------------------------------


@tried(20, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([b"401 Unauthorized", b"413 Content Too Large", b"200 OK", b"303 See Other"]),
    st.sampled_from([5, 1000, 100_000]),
    st.booleans(),
    st.booleans(),
)
def test_an_early_final_answer_is_the_one_that_nginx_gives(
    told: Both, status: bytes, size: int, expects: bool, chunked: bool
) -> None:
    """RFC 9112, section 9.5."""
    body = b"x" * size
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    data = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body) if chunked else body
    lines = [b"X-When: at-once", framing, *([b"Expect: 100-continue"] if expects else [])]
    answer = b"HTTP/1.1 %b\r\nContent-Length: 5\r\nConnection: close\r\n\r\nearly" % status
    asked = asking_for(answer, *lines, method=b"POST", body=data)
    ours, nginx = reading(say(told.ours, asked)), reading(say(told.nginx, asked))
    assert ours == (int(status[:3]), b"early", True)
    assert nginx in (None, ours)
