"""Measures the CPU time of the fast lane's own code: exchanges without sockets, in µs.

`python -m analysis.bench.lane` prints the time for requests and answers of different programs.

The lane is the real one, on an event loop that opens no connections: each protocol gets a transport that
keeps the bytes written to it. The benchmark passes a request to the protocol of a client, then the answer to
the protocol of the replica. It uses only the methods of `asyncio.Protocol`, so it does not depend on the
lane's design.
"""

import argparse
import asyncio
import random
import socket
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import uvloop

from analysis.bench import traffic
from loadbalancer.proxy.accounting import Accounting
from loadbalancer.proxy.fast.lane import FastLane
from loadbalancer.proxy.router import Router
from loadbalancer.publication import Publication
from loadbalancer.routing.snapshot import snapshot_maker
from loadbalancer.routing.upstream import Upstream
from loadbalancer.settings import Settings
from loadbalancer.telemetry.metrics import Metrics

HOST = "127.0.0.1:8301"

BODY = b'{"message": "Hello from Server: Server-1", "status": "successful"}'

CLIENTS = 64
"""Client connections, which send their requests in turn."""

TURNS = 1_000
"""Most turns of the loop until a request reaches a replica, and until an answer reaches its client."""

Message = Callable[[int], bytes]
"""Makes a message that differs for each number."""

CHROME = (
    "GET /items/{n}?page={n} HTTP/1.1\r\nHost: " + HOST + "\r\nConnection: keep-alive\r\n"
    'sec-ch-ua: "Chromium";v="128", "Not;A=Brand";v="24", "Google Chrome";v="128"\r\n'
    'sec-ch-ua-mobile: ?0\r\nsec-ch-ua-platform: "Linux"\r\nUpgrade-Insecure-Requests: 1\r\n'
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/128.0.0.0 "
    "Safari/537.36\r\nAccept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,"
    "image/apng,*/*;q=0.8\r\nSec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: navigate\r\n"
    "Sec-Fetch-User: ?1\r\nSec-Fetch-Dest: document\r\nReferer: http://127.0.0.1:8301/items\r\n"
    "Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9\r\n"
    "Cookie: sid={n:032x}; theme=dark; _ga=GA1.1.1234567890.1700000000; "
    "_ga_ABCDEFGHIJ=GS1.1.1700000000.1.1.1700000100.60.0.0; "
    "consent=eyJuZWNlc3NhcnkiOnRydWUsInN0YXRpc3RpY3MiOmZhbHNlLCJtYXJrZXRpbmciOmZhbHNlLCJ2ZXJzaW9uIjoxfQ; "
    "cart=2c26b46b68ffc68ff99b453c1d304134; lang=en\r\n\r\n"
)

REQUESTS: dict[str, Message] = {
    "curl": lambda n: (
        f"GET /{n:09} HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n".encode()
    ),
    "wrk": lambda n: traffic.request(n, HOST),
    "Chrome": lambda n: CHROME.format(n=n).encode(),
}

ANSWERS: dict[str, Message] = {
    "nginx": lambda n: (
        b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Wed, 31 Jan 2026 12:00:00 GMT\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\nConnection: keep-alive\r\n"
        b"X-Served: %032x\r\n\r\n%b" % (len(BODY), n, BODY)
    ),
    "uvicorn": lambda n: (
        b"HTTP/1.1 200 OK\r\ndate: Wed, 31 Jan 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
        b"content-length: %d\r\ncontent-type: application/json\r\nx-served: %032x\r\n\r\n%b"
        % (len(BODY), n, BODY)
    ),
    "gunicorn": lambda n: (
        b"HTTP/1.1 200 OK\r\nServer: gunicorn\r\nDate: Wed, 31 Jan 2026 12:00:00 GMT\r\n"
        b"Connection: keep-alive\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
        b"X-Frame-Options: DENY\r\nVary: Accept, Cookie\r\nX-Content-Type-Options: nosniff\r\n"
        b"Referrer-Policy: same-origin\r\nSet-Cookie: sid=%032x; HttpOnly; Path=/; SameSite=Lax\r\n\r\n%b"
        % (len(BODY), n, BODY)
    ),
}


class Wire(asyncio.Transport):
    """A transport without a connection: it keeps the last bytes written to it.

    Args:
        protocol: Protocol on this transport.
        written: List that the transport appends itself to at each write.
    """

    socket = socket.socket()
    """A socket for code that sets socket options."""

    def __init__(self, protocol: asyncio.BaseProtocol, written: "list[Wire]") -> None:
        super().__init__(
            {"peername": ("127.0.0.1", 40_000), "sockname": ("127.0.0.1", 8301), "socket": self.socket}
        )
        self.protocol: asyncio.Protocol = protocol  # type: ignore[assignment]
        self.last = b""
        self._written = written
        self._closing = False
        self.protocol.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep the bytes, and note the write."""
        self.last = bytes(data)
        self._written.append(self)

    def is_closing(self) -> bool:
        """Whether the transport is closed."""
        return self._closing

    def close(self) -> None:
        """Close the transport. The protocol gets no `connection_lost`, because it is not used any more."""
        self._closing = True

    abort = close

    def is_reading(self) -> bool:
        """True at all times."""
        return True

    def pause_reading(self) -> None:
        """Do nothing: no bytes arrive by themselves."""

    resume_reading = pause_reading

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Do nothing: the transport has no buffer."""

    def get_write_buffer_size(self) -> int:
        """The transport has no buffer."""
        return 0


class Loop(uvloop.Loop):
    """An event loop without connections: each protocol gets a `Wire`."""

    def __init__(self) -> None:
        super().__init__()
        self.client: asyncio.Future[Callable[[], asyncio.BaseProtocol]] = self.create_future()
        """The factory of the protocols of client connections."""
        self.to_replicas: list[Wire] = []
        """Wires to replicas, one item for each write."""

    async def create_server(  # type: ignore[override]
        self, factory: Any, *args: Any, **options: Any
    ) -> asyncio.AbstractServer:
        """Keep the factory of the protocols; return a real server that accepts no connections."""
        self.client.set_result(factory)
        return await super().create_server(asyncio.Protocol, "127.0.0.1", 0, start_serving=False)

    async def connect_accepted_socket(  # type: ignore[override]
        self, factory: Any, sock: socket.socket, **options: Any
    ) -> Any:
        """Keep the factory of the protocols."""
        self.client.set_result(factory)
        protocol = factory()
        return Wire(protocol, []), protocol

    async def create_connection(  # type: ignore[override]
        self, factory: Any, *args: Any, **options: Any
    ) -> Any:
        """Make the protocol of a connection to a replica."""
        protocol = factory()
        return Wire(protocol, self.to_replicas), protocol


async def exchanges(loop: Loop, requests: Sequence[bytes], answers: Sequence[bytes]) -> float:
    """Send requests through the lane one after the other; return the µs of CPU time for one exchange.

    Args:
        loop: Loop that runs this coroutine.
        requests: Requests of the clients. The first tenth is not measured, because it opens connections.
        answers: Answers of the replicas, one for each request.

    Raises:
        RuntimeError: A message did not arrive.
    """
    upstreams = [Upstream(f"Server-{n}", n, "127.0.0.1", 5_000 + n) for n in (1, 2, 3)]
    make = snapshot_maker("consistent-hash", "default", 1.25, random.Random(1))
    source = Publication(make(upstreams), lambda: False)
    accounting = Accounting(Metrics(), access_log=False)
    with socket.socket() as listener, socket.socket() as caller:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        settings = Settings.model_validate({})
        async with FastLane(Router.of(source, settings), settings, accounting, "/nowhere") as lane:
            await lane.listen(listener)
            if (
                not loop.client.done()
            ):  # a lane that calls `accept` itself makes a protocol for this connection
                caller.connect(listener.getsockname())
            factory = await asyncio.wait_for(loop.client, 5)
            written: list[Wire] = []
            clients = [Wire(factory(), written) for _ in range(CLIENTS)]
            unmeasured = len(requests) // 10
            began = 0.0
            for number, (request, answer) in enumerate(zip(requests, answers, strict=True)):
                if number == unmeasured:
                    began = time.process_time()
                await _exchange(clients[number % CLIENTS], request, answer, loop.to_replicas, written)
            return (time.process_time() - began) / (len(requests) - unmeasured) * 1e6


async def _exchange(
    client: Wire, request: bytes, answer: bytes, to_replicas: list[Wire], to_clients: list[Wire]
) -> None:
    """Exchange one request and its answer. The loop turns only if the lane needs it to."""
    client.protocol.data_received(request)
    if not to_replicas:
        await _until(to_replicas)
    replica = to_replicas.pop()
    replica.protocol.data_received(answer)
    if not to_clients:
        await _until(to_clients)
    to_replicas.clear()
    to_clients.clear()
    if not client.last.endswith(BODY):
        raise RuntimeError(f"a client got {client.last!r}")


async def _until(written: Sequence[Wire]) -> None:
    """Turn the loop until a transport has been written to."""
    for _ in range(TURNS):
        await asyncio.sleep(0)
        if written:
            return
    raise RuntimeError("nothing was written")


def measure(request: Message, answer: Message, count: int) -> float:
    """The µs of CPU time for an exchange: the mean of so many exchanges, all with different messages."""
    first = random.randrange(100_000_000)
    requests = [request(first + n) for n in range(count)]
    answers = [answer(first + n) for n in range(count)]
    loop = Loop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(exchanges(loop, requests, answers))


def main() -> int:
    """Print the time of each kind of request with each kind of answer."""
    parser = argparse.ArgumentParser(prog="python -m analysis.bench.lane", description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="number of exchanges of each run")
    parser.add_argument("--runs", type=int, default=3, help="number of runs; the median is printed")
    options = parser.parse_args()
    print("µs of CPU time for an exchange; all messages differ:")
    for client, request in REQUESTS.items():
        for replica, answer in ANSWERS.items():
            took = median(measure(request, answer, options.count) for _ in range(options.runs))
            sizes = f"{len(request(0))} and {len(answer(0))} bytes"
            print(f"{client:>6} and {replica:<8} {took:6.1f}   ({sizes})", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
