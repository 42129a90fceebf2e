"""The traffic: what is asked, and what the programs that ask say of it.

Varied traffic comes first, for no two clients ask the same: each request has a path, a query and a cookie of
its own, and each answer a header of its own. Identical traffic is the same bytes each time.
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
"""Makes the varied requests for wrk."""

COOKIE = "sid"
"""Name of the cookie that varies."""

MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0}

URLS = 50_000
"""How many different ones h2load asks for in turn."""


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Args:
        requests: That were answered.
        rate: The same, a second.
        p99: Milliseconds; NaN: not told.
        failures: Answers other than 2xx and 3xx, broken connections and time-outs.
    """

    requests: int
    rate: float
    p99: float
    failures: int


Traffic = Callable[[Peer, int, int], Outcome]
"""Loads a contestant: with how many connections, for how many seconds."""


def varied(peer: Peer, connections: int, seconds: int) -> Outcome:
    """Requests of which no two are alike, on connections that are kept."""
    return _wrk(connections, seconds, ["-s", str(SCRIPT), peer.url("/"), "--", _anywhere()])


def short(peer: Peer, connections: int, seconds: int) -> Outcome:
    """The same, each on a connection of its own."""
    return _wrk(connections, seconds, ["-s", str(SCRIPT), peer.url("/"), "--", _anywhere(), "close"])


def identical(peer: Peer, connections: int, seconds: int) -> Outcome:
    """The same request again and again, on connections that are kept."""
    return _wrk(connections, seconds, [peer.url("/home")])


def by_h2load(peer: Peer, connections: int, seconds: int) -> Outcome:
    """Requests with a path and a query of their own, by HTTP/1.1, on connections that are kept."""
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
    """A varied request, for our own clients.

    Args:
        number: Each has its own.
        host: What stands in its Host header.
        path: What it asks for; empty: a path of its own.
    """
    return (
        f"GET {path or f'/items/{number}'}?page={number} HTTP/1.1\r\nHost: {host}\r\n"
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n"
        "Accept: text/html,*/*;q=0.8\r\nAccept-Language: en\r\nAccept-Encoding: gzip, deflate\r\n"
        f"Cookie: theme=dark; {COOKIE}={number:09}\r\n\r\n"
    ).encode()


def _anywhere() -> str:
    """A number to begin at: what was asked in one run is not asked again in the next."""
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
    """Run a program on the core of the load; what it prints."""
    pinned = ["taskset", "-c", str(LOAD_CORE), *argv]
    return subprocess.run(pinned, capture_output=True, text=True, check=True).stdout
