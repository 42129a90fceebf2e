"""What comes before a first request: many clients at once, bounds, PROXY headers, TLS, and dead peers."""

import asyncio
import contextlib
import json
import re
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.harness import LoadBalancer, eventually, replica
from tests.raw import GET, LAST, connect, read_all, read_until, statuses

ODD = ("--command", replica("odd"))
PROXIED = ("--proxy-protocol", "--trusted-proxies", "127.0.0.1", "--head-timeout", "0.5")

V1 = b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n"
V2 = (
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11"
    + struct.pack("!H", 12)
    + bytes([203, 0, 113, 7, 192, 0, 2, 1])
    + struct.pack("!HH", 4711, 443)
)
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0"


class Issued:
    """A certificate in files, and the authority that stands for it."""

    def __init__(self, folder: Path) -> None:
        cert, key = folder / "cert.pem", folder / "key.pem"
        self._authority = trustme.CA()
        issued = self._authority.issue_cert("127.0.0.1")
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(key))
        self.options = ("--tls-cert", str(cert), "--tls-key", str(key))

    def wrap(self, connection: socket.socket) -> ssl.SSLSocket:
        context = ssl.create_default_context()
        self._authority.configure_trust(context)
        return context.wrap_socket(connection, server_hostname="127.0.0.1")


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    return Issued(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def lb() -> Iterator[LoadBalancer]:
    # The one replica is slow to accept a thousand: that is not what is tested.
    with LoadBalancer(*ODD, "--connect-timeout", "30", replicas=1) as running:
        yield running


# -- many ---------------------------------------------------------------------------------------------


async def test_a_thousand_clients_that_connect_at_once_are_all_served(lb: LoadBalancer) -> None:
    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", lb.port)
        writer.write(LAST)
        answer = await reader.read()
        writer.close()
        return answer

    answers = await asyncio.gather(*(ask() for _ in range(1000)))
    assert [statuses(answer) for answer in answers] == [[200]] * 1000


def test_a_refusal_beyond_the_bound_can_be_read_by_a_client_that_writes_first() -> None:
    """RFC 9112, section 9.6."""
    with LoadBalancer("--max-connections", "2", *ODD, replicas=1) as lb, contextlib.ExitStack() as held:
        for _ in range(2):
            connection = held.enter_context(connect(lb))
            connection.sendall(GET)
            read_until(connection, b"}")
        for _ in range(10):
            with connect(lb) as refused:
                refused.sendall(GET)
                refused.sendall(GET)
                answer = read_all(refused)
            assert statuses(answer) == [503]
            assert b"there are 2 connections already" in answer


# -- the PROXY header -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["plain", "tls"])
def proxied(request: pytest.FixtureRequest, issued: Issued) -> Iterator[tuple[LoadBalancer, Issued | None]]:
    with_tls = request.param == "tls"
    options = issued.options if with_tls else ()
    with LoadBalancer(*ODD, *PROXIED, *options, replicas=1) as running:
        yield running, issued if with_tls else None


Proxied = tuple[LoadBalancer, Issued | None]


def forwarded_for(proxied: Proxied, header: bytes, *, slowly: bool = False) -> str:
    """Who a replica is told that a request comes from, which follows a PROXY header."""
    lb, issued = proxied
    connection = connect(lb)
    for piece in [bytes([byte]) for byte in header] if slowly else [header]:
        connection.sendall(piece)
    with issued.wrap(connection) if issued else connection as speaking:
        speaking.sendall(LAST)
        facts = json.loads(read_all(speaking).partition(b"\r\n\r\n")[2])
    told: str = {name.lower(): value for name, value in facts["headers"]}["x-forwarded-for"]
    return told


@pytest.mark.parametrize("slowly", [False, True])
@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
def test_the_client_is_the_one_that_the_proxy_names(proxied: Proxied, header: bytes, slowly: bool) -> None:
    assert forwarded_for(proxied, header, slowly=slowly) == "203.0.113.7"


@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN\r\n"], ids=["v2 LOCAL", "v1 UNKNOWN"])
def test_a_proxy_may_speak_for_itself(proxied: Proxied, header: bytes) -> None:
    assert forwarded_for(proxied, header) == "127.0.0.1"


def test_the_request_may_come_in_the_same_packet() -> None:
    with LoadBalancer(*ODD, *PROXIED, replicas=1) as lb, connect(lb) as connection:
        connection.sendall(V1 + LAST)
        assert b"203.0.113.7" in read_all(connection)


@pytest.mark.parametrize("begin", [GET, b"PROXY TCP9 \r\n", V2[:12] + b"\x31\x11\0\0", b"\x16\x03\x01"])
def test_a_trusted_proxy_that_sends_none_is_refused_and_said(proxied: Proxied, begin: bytes) -> None:
    lb, _ = proxied
    mark = lb.mark()
    with connect(lb) as connection:
        connection.sendall(begin)
        assert ended(connection) == b""
    assert lb.wait_for("connection refused", after=mark)["peer"] == "127.0.0.1"


@pytest.mark.parametrize("begin", [b"", V1[:10], V2[:20]], ids=["nothing", "half v1", "half v2"])
def test_a_header_that_does_not_come_is_not_waited_for(proxied: Proxied, begin: bytes) -> None:
    """Longer than `--head-timeout` says."""
    with connect(proxied[0]) as connection:
        connection.sendall(begin)
        began = time.monotonic()
        assert ended(connection) == b""
        assert time.monotonic() - began < 5


def test_a_stranger_cannot_name_a_client() -> None:
    with LoadBalancer(*ODD, *PROXIED, replicas=1) as lb:
        stranger = socket.create_connection(("127.0.0.1", lb.port), 20, source_address=("127.0.0.2", 0))
        with stranger:
            stranger.sendall(V1 + LAST)
            assert statuses(read_all(stranger)) == [501], "it is taken for a request with an odd method"


def ended(connection: socket.socket) -> bytes:
    """What comes until the connection ends, however it does."""
    try:
        return read_all(connection)
    except ConnectionResetError:
        return b""


# -- ends of connections with TLS -----------------------------------------------------------------------


def test_a_tls_client_that_stays_after_its_last_answer_counts_no_longer(issued: Issued) -> None:
    options = ("--max-connections", "2", *issued.options)
    with LoadBalancer(*ODD, *options, replicas=1) as lb, contextlib.ExitStack() as held:
        for _ in range(2):
            client = held.enter_context(issued.wrap(connect(lb)))
            client.sendall(LAST)
            read_until(client, b"}")  # and it neither closes nor answers the end of TLS

        def there_is_room() -> bool:
            try:
                with issued.wrap(connect(lb)) as another:
                    another.sendall(LAST)
                    return statuses(read_all(another)) == [200]
            except (ssl.SSLError, ConnectionError):
                return False

        began = time.monotonic()
        eventually(there_is_room, "their places are free")
        assert time.monotonic() - began < 10


def test_stopping_does_not_wait_for_an_idle_tls_client(issued: Issued) -> None:
    options = (*ODD, *issued.options, "--drain-timeout", "25")
    with LoadBalancer(*options, replicas=1) as lb, issued.wrap(connect(lb)) as client:
        client.sendall(GET)
        read_until(client, b"}")
        began = time.monotonic()
        assert lb.stop() == 0
        assert time.monotonic() - began < 8


def test_a_tls_handshake_that_does_not_come_is_not_waited_for(issued: Issued) -> None:
    options = (*ODD, *issued.options, "--head-timeout", "0.4")
    with LoadBalancer(*options, replicas=1) as lb, connect(lb) as silent:
        assert ended(silent) == b""


# -- peers that vanish ------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="timers of sockets are read from /proc")
def test_the_kernel_probes_both_ends_when_they_are_silent(lb: LoadBalancer) -> None:
    """A replica or a client whose machine is gone says nothing (RFC 9293, section 3.8.4)."""
    replica_port = int(lb.state()["Server-1"]["address"].rpartition(":")[2])
    with connect(lb) as connection:
        connection.sendall(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")
        client_port = connection.getsockname()[1]
        eventually(lambda: keeps_alive(lb.port, client_port), "the client's socket is probed")
        eventually(lambda: keeps_alive(None, replica_port), "the replica's socket is probed")
        # A mere close is that of a client that waits for its answer.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def keeps_alive(local: int | None, remote: int) -> bool:
    """Whether a connected socket waits to send a probe (proc(5): state 01 and timer 02)."""
    lines = re.findall(r": \w+:(\w{4}) \w+:(\w{4}) 01 \w+:\w+ (\d\d):", Path("/proc/net/tcp").read_text())
    return any(
        timer == "02" and int(there, 16) == remote and local in (None, int(here, 16))
        for here, there, timer in lines
    )
