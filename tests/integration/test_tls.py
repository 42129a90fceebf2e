"""HTTPS in both lanes: HTTP/1.1 and HTTP/2 by ALPN, and the renewal of certificates at run time."""

import contextlib
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
import trustme

from tests.harness import LoadBalancer, eventually, free_port, replica


class Issued:
    """A certificate in files, and the authority that has issued it."""

    def __init__(self, folder: Path) -> None:
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        self.renew()

    def renew(self) -> None:
        self.authority = trustme.CA()
        issued = self.authority.issue_cert("127.0.0.1")
        self.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(self.key))

    @property
    def options(self) -> tuple[str, ...]:
        return ("--tls-cert", str(self.cert), "--tls-key", str(self.key))

    def connect(self, port: int, *protocols: str) -> ssl.SSLSocket:
        """Open a connection that trusts this certificate only."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if protocols:
            context.set_alpn_protocols(protocols)
        plain = socket.create_connection(("127.0.0.1", port), timeout=20)
        return context.wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Issued:
    return Issued(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module", params=["fast", "asgi"])
def lb(issued: Issued, request: pytest.FixtureRequest) -> Iterator[LoadBalancer]:
    options = ("--lane", request.param, "--command", replica("odd"), *issued.options)
    with LoadBalancer(*options, replicas=1) as running:
        yield running


def read(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(1 << 16):
        received += piece
    return received


def speak_http1(connection: ssl.SSLSocket, target: str) -> str:
    with connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return read(connection).decode()


def speak_http2(connection: ssl.SSLSocket, *targets: str, body: bytes = b"") -> dict[str, tuple[int, bytes]]:
    """Send all requests at once, and return status and body of each answer."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    streams: dict[int, str] = {}
    for target in targets:
        stream = client.get_next_available_stream_id()
        streams[stream] = target
        method = "POST" if body else "GET"
        head = [(":method", method), (":path", target), (":scheme", "https"), (":authority", "x")]
        client.send_headers(stream, head, end_stream=not body)
        if body:
            client.send_data(stream, body, end_stream=True)
    status: dict[int, int] = {}
    bodies = dict.fromkeys(streams, b"")
    ended: set[int] = set()
    with connection:
        while len(ended) < len(streams):
            connection.sendall(client.data_to_send())
            data = connection.recv(1 << 16)
            assert data, "the connection stays open until all requests are answered"
            for event in client.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    status[event.stream_id] = int(
                        {str(name): value for name, value in event.headers}[":status"]
                    )
                elif isinstance(event, h2.events.DataReceived):
                    bodies[event.stream_id] += event.data
                    client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    ended.add(event.stream_id)
    return {target: (status[stream], bodies[stream]) for stream, target in streams.items()}


def test_http1_over_tls(lb: LoadBalancer, issued: Issued) -> None:
    answer = speak_http1(issued.connect(lb.port, "http/1.1"), "/x?y=1")
    assert answer.startswith("HTTP/1.1 200")
    assert '"target": "/x?y=1"' in answer
    assert '["x-forwarded-proto", "https"]' in answer.lower()
    assert speak_http1(issued.connect(lb.port), "/rep").startswith("HTTP/1.1 200"), "also without ALPN"


def test_http2_by_alpn(lb: LoadBalancer, issued: Issued) -> None:
    connection = issued.connect(lb.port, "h2", "http/1.1")
    assert connection.selected_alpn_protocol() == "h2"
    answers = speak_http2(connection, "/one", "/two", "/rep", "/lb/health")
    assert {status for status, _ in answers.values()} == {200}
    assert b'"target": "/two"' in answers["/two"][1]
    assert b'"x-forwarded-proto", "https"' in answers["/one"][1].lower()
    assert b'"x-forwarded-for", "127.0.0.1"' in answers["/one"][1].lower()
    assert b'"N": 1' in answers["/rep"][1]


def test_bodies_over_http2(lb: LoadBalancer, issued: Issued) -> None:
    answers = speak_http2(issued.connect(lb.port, "h2"), "/in", body=b"x" * 10_000)
    assert b'"length": 10000' in answers["/in"][1]


def test_plain_http_is_refused_on_the_tls_port(lb: LoadBalancer) -> None:
    with socket.create_connection(("127.0.0.1", lb.port), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            assert read(connection) == b""


@pytest.mark.parametrize("lane", ["fast", "asgi"])
def test_sighup_loads_a_renewed_certificate(lane: str, tmp_path: Path) -> None:
    issued = Issued(tmp_path)
    with LoadBalancer("--lane", lane, *issued.options, replicas=0) as lb:
        old = issued.connect(lb.port)
        issued.renew()
        with pytest.raises(ssl.SSLCertVerificationError):
            issued.connect(lb.port)
        lb.process.send_signal(signal.SIGHUP)
        lb.wait_for("certificate reloaded")
        assert speak_http1(issued.connect(lb.port), "/rep").startswith("HTTP/1.1 200")
        assert speak_http1(old, "/rep").startswith("HTTP/1.1 200"), "open connections stay open"

        issued.key.write_text("no key")
        lb.process.send_signal(signal.SIGHUP)
        record = lb.wait_for("certificate not reloaded")
        assert str(issued.key) in record["reason"]
        assert speak_http1(issued.connect(lb.port), "/rep").startswith("HTTP/1.1 200"), (
            "the old certificate stays in use"
        )


def test_an_answer_over_http2_is_finished_after_sigterm(issued: Issued) -> None:
    with LoadBalancer("--command", replica("odd"), *issued.options, replicas=1) as lb:
        connection = issued.connect(lb.port, "h2")
        client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        client.initiate_connection()
        head = [(":method", "GET"), (":path", "/slow?seconds=1"), (":scheme", "https"), (":authority", "x")]
        client.send_headers(1, head, end_stream=True)
        connection.sendall(client.data_to_send())
        eventually(
            lambda: (
                b'"in_flight": 1'
                in speak_http2(issued.connect(lb.port, "h2"), "/lb/replicas")["/lb/replicas"][1]
            ),
            "the request is with the replica",
        )
        lb.process.send_signal(signal.SIGTERM)
        events = [
            event
            for piece in iter(lambda: connection.recv(65536), b"")
            for event in client.receive_data(piece)
        ]
        assert any(isinstance(event, h2.events.StreamEnded) for event in events)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tls-cert", "{cert}"], "--tls-cert: has no effect without --tls-key"),
        (["--tls-key", "{key}"], "--tls-key: has no effect without --tls-cert"),
        (["--tls-cert", "{cert}", "--tls-key", "/nowhere"], "cannot read /nowhere: No such file"),
        (["--tls-cert", "/nowhere", "--tls-key", "{key}"], "cannot read /nowhere: No such file"),
        (["--tls-cert", "{key}", "--tls-key", "{key}"], "cannot use"),
    ],
)
def test_an_unusable_certificate_is_named_before_anything_starts(
    issued: Issued, options: list[str], words: str
) -> None:
    given = [option.format(cert=issued.cert, key=issued.key) for option in options]
    done = subprocess.run(
        [sys.executable, "-m", "loadbalancer", "serve", "--port", str(free_port()), *given],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
