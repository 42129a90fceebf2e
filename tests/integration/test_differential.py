"""Odd requests, side by side with nginx before the same replica: what is accepted here, nginx reads the same.

Only one way round: nginx takes things that are refused here, such as bare line feeds. Left out is that
nginx decodes paths for its own use and refuses those that leave the root or have a NUL (`/%2e%2e/`, `/%00`);
here they are the replica's to judge, who gets them as they came. And nginx takes a tab beside a value for a
part of it, and refuses a second Expect, which RFC 9110 (sections 5.6.3 and 10.1.1) does not; and it does not
pass `OPTIONS *` on (section 9.3.7).
"""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from tests.fuzzing import tried
from tests.harness import LoadBalancer, eventually, free_port, replica

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")

CONFIG = """
daemon off; worker_processes 1; pid {home}/nginx.pid; error_log /dev/null;
events {{ }}
http {{
  access_log off; client_header_timeout 300ms; client_body_timeout 300ms; keepalive_timeout 300ms;
  client_body_temp_path {home}; proxy_temp_path {home}; fastcgi_temp_path {home};
  uwsgi_temp_path {home}; scgi_temp_path {home};
  underscores_in_headers on; ignore_invalid_headers off; large_client_header_buffers 4 32k;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://{address}; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $http_host; proxy_request_buffering off;
    }}
    location /said {{
      proxy_pass http://{address}; proxy_http_version 1.1; proxy_buffering off;
      proxy_set_header Connection $http_connection; proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Host $http_host; proxy_request_buffering off; proxy_read_timeout 1s;
    }}
  }}
}}
"""

LINES = [
    b"Host: x",
    b"Host: x:80",
    b"Host: [::1]",
    b"Host:x",
    b"host:  x ",
    b"Host: ",
    b"Host: a, b",
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"Content-Length: +5",
    b"Content-Length: 5, 5",
    b"Content-Length: 05",
    b"Content-Length: 0x5",
    b"Content-Length: -1",
    b"Content-Length : 5",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: Chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding:  chunked",
    b"Transfer-Encoding: \x0bchunked",
    b"Transfer_Encoding: chunked",
    b"X-A: b",
    b"X-A:",
    b"X-A: \xff",
    b"X-A: a\x00b",
    b"X-A: a\rb",
    b" folded",
    b"X A: b",
    b": nothing",
    b"NoColon",
    b"Expect: 100-continue",
    b"Connection: close",
    b"Connection: keep-alive",
    b"TE: trailers",
]

FIRST = [
    b"GET /x HTTP/1.1",
    b"POST /x?y=z HTTP/1.1",
    b"PUT /x HTTP/1.0",
    b"GET http://h/x HTTP/1.1",
    b"GET //x HTTP/1.1",
    b"GET /a/../b HTTP/1.1",
    b"GET /%2e%20 HTTP/1.1",
    b"GET /x y HTTP/1.1",
    b"GET  /x HTTP/1.1",
    b"GET /x  HTTP/1.1",
    b"GET /x HTTP/1.1 ",
    b"GET /x HTTP/2.0",
    b"GET /x HTTP/1.2",
    b"GET /x http/1.1",
    b"GET /x",
    b"get /x HTTP/1.1",
    b"DELETE /\xc3\xa9 HTTP/1.1",
    b"GET x HTTP/1.1",
    b"GET /x#y HTTP/1.1",
    b"GET \t/x HTTP/1.1",
]

BODIES = [
    b"",
    b"hello",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;a=b\r\nhello\r\n0\r\nT: 1\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"05\r\nhello\r\n00\r\n\r\n",
    b"-1\r\nhello\r\n0\r\n\r\n",
    b"FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhelloX\r\n0\r\n\r\n",
    b"5\r\nhello0\r\n\r\n",
    b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
]


@dataclass
class Both:
    ours: int
    nginx: int


@contextlib.contextmanager
def side_by_side(home: Path, behind: str) -> Iterator[Both]:
    """A load balancer, and nginx before the same replica.

    Args:
        home: A folder of nginx's own.
        behind: One of the servers in `tests/replicas`.
    """
    home.chmod(0o777)
    options = ("--head-timeout", "0.3", "--idle-timeout", "0.3", "--eject-after", "0")
    with LoadBalancer("--command", replica(behind), *options, replicas=1) as lb:
        port = free_port()
        config = home / "nginx.conf"
        config.write_text(CONFIG.format(home=home, port=port, address=lb.state()["Server-1"]["address"]))
        process = subprocess.Popen(
            ["nginx", "-e", "/dev/null", "-c", str(config)], stdout=sys.stderr, stderr=sys.stderr
        )
        try:
            eventually(lambda: bool(say(port, b"GET /x HTTP/1.0\r\n\r\n")), "nginx answers")
            yield Both(lb.port, port)
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with side_by_side(tmp_path_factory.mktemp("nginx"), "odd") as running:
        yield running


def say(port: int, data: bytes) -> bytes:
    """Send it, and read until the other side closes."""
    received = b""
    with (
        contextlib.suppress(ConnectionError, TimeoutError),
        socket.create_connection(("127.0.0.1", port), timeout=5) as connection,
    ):
        connection.sendall(data)
        while piece := connection.recv(1 << 16):
            received += piece
    return received


def readings(answers: bytes) -> list[tuple[Any, ...]]:
    """How the replica has read the requests that reached it."""
    found = [json.loads(body) for body in re.findall(rb'\{"method".*?"hostname": "[^"]*"\}', answers)]
    return [(one["method"], one["target"], one["length"], one["sha256"]) for one in found]


@st.composite
def odd(draw: st.DrawFn) -> bytes:
    lines = draw(st.lists(st.sampled_from(LINES), max_size=4))
    if draw(st.booleans()):
        lines = [b"Host: x", *(line for line in lines if not line.lower().startswith(b"host"))]
    if b"Expect: 100-continue" in lines:
        lines = [line for line in lines if line != b"Expect: 100-continue"] + [b"Expect: 100-continue"]
    ends = draw(st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r"]))
    return ends.join([draw(st.sampled_from(FIRST)), *lines, b"", b""]) + draw(st.sampled_from(BODIES))


@tried(60, suppress_health_check=list(HealthCheck))
@given(odd())
@example(b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
@example(b"GET /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
def test_what_is_accepted_is_read_as_nginx_reads_it(both: Both, data: bytes) -> None:
    ours = readings(say(both.ours, data))
    nginx = readings(say(both.nginx, data))
    assert ours == nginx[: len(ours)]


def test_plain_requests_are_accepted_by_both(both: Both) -> None:
    for first in FIRST[:5]:
        data = first + b"\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert len(readings(say(both.ours, data))) == 1, first
        assert readings(say(both.ours, data)) == readings(say(both.nginx, data))
