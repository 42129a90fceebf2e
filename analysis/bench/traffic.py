"""The traffic of the benchmark: the requests, and the programs that send them and measure the answers.

In varied traffic each request has a different path, query and cookie, and each answer a different header, as
in real traffic. In identical traffic all requests are the same.
"""

import math
import random
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.bench.peers import LOAD_CORE, Peer

SCRIPT = Path(__file__).with_name("varied.lua")
"""Lua script that makes the varied requests for wrk."""

COOKIE = "sid"
"""Name of the cookie that varies."""

MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0}
"""Milliseconds in each unit that wrk prints."""

URLS = 50_000
"""Number of different URLs that h2load requests in turn."""


@dataclass(frozen=True)
class Outcome:
    """The figures of one run.

    Args:
        requests: Number of answered requests.
        rate: Answered requests a second.
        p99: 99th percentile of latency in milliseconds; NaN: the program does not print it.
        failures: Answers other than 2xx and 3xx, broken connections and time-outs.
    """

    requests: int
    rate: float
    p99: float
    failures: int


Traffic = Callable[[Peer, int, int], Outcome]
"""Sends a load to a peer, given the number of connections and the seconds, and returns the figures."""


def varied(peer: Peer, connections: int, seconds: int) -> Outcome:
    """Varied requests on kept connections."""
    return _wrk(connections, seconds, ["-s", str(SCRIPT), peer.url("/"), "--", _random_start()])


def short(peer: Peer, connections: int, seconds: int) -> Outcome:
    """Varied requests, each on a new connection."""
    return _wrk(connections, seconds, ["-s", str(SCRIPT), peer.url("/"), "--", _random_start(), "close"])


def identical(peer: Peer, connections: int, seconds: int) -> Outcome:
    """Identical requests on kept connections."""
    return _wrk(connections, seconds, [peer.url("/home")])


def by_h2load(peer: Peer, connections: int, seconds: int) -> Outcome:
    """HTTP/1.1 requests with different paths and queries, on kept connections."""
    first = random.randrange(1_000_000)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as urls:
        urls.writelines(f"{peer.url(f'/items/{n}?page={n % 1000}')}\n" for n in range(first, first + URLS))
        urls.flush()
        text = _run("h2load", "--h1", "-t1", f"-c{connections}", f"-D{seconds}", "-i", urls.name)
    rate = float(re.findall(r"finished in .*?, ([\d.]+) req/s", text)[0])
    done, failed = re.findall(r" (\d+) done, \d+ succeeded, (\d+) failed", text)[0]
    bad = sum(map(int, re.findall(r"(\d+) [45]xx", text)))
    return Outcome(int(done), rate, math.nan, max(int(failed), bad))


def request(number: int, host: str, path: str = "") -> bytes:
    """A varied request for the clients of this package.

    Args:
        number: Number that makes the query and the cookie differ.
        host: Value of the Host header.
        path: Path of the request; empty: a path that differs too.
    """
    return (
        f"GET {path or f'/items/{number}'}?page={number} HTTP/1.1\r\nHost: {host}\r\n"
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
        "Accept: text/html,*/*;q=0.8\r\nAccept-Language: en\r\nAccept-Encoding: gzip, deflate\r\n"
        f"Cookie: theme=dark; {COOKIE}={number:09}\r\n\r\n"
    ).encode()


def _random_start() -> str:
    """The number of the first request: random, so that two runs do not repeat the same requests."""
    return str(random.randrange(1_000_000_000))


def _wrk(connections: int, seconds: int, rest: Sequence[str]) -> Outcome:
    text = _run("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *rest)
    value, unit = re.findall(r"99%\s+([\d.]+)(us|ms|s)", text)[0]
    counts = re.findall(
        r"Non-2xx or 3xx responses: (\d+)|connect (\d+), read (\d+), write (\d+), timeout (\d+)", text
    )
    return Outcome(
        requests=int(re.findall(r"(\d+) requests in", text)[0]),
        rate=float(re.findall(r"Requests/sec:\s+([\d.]+)", text)[0]),
        p99=float(value) * MILLISECONDS[unit],
        failures=sum(int(count or 0) for found in counts for count in found),
    )


def _run(*argv: str) -> str:
    """Run a program on the core of the load generator, and return its output."""
    pinned = ["taskset", "-c", str(LOAD_CORE), *argv]
    return subprocess.run(pinned, capture_output=True, text=True, check=True).stdout
