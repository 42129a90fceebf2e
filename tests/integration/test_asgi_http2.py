"""The boundaries of HTTP/2 (RFC 9113): what clients get wrong, and WebSockets (RFC 8441)."""

import json
import socket
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import h2.config
import h2.connection
import h2.errors
import h2.events
import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Event, TextMessage

from tests.harness import LoadBalancer, eventually, replica

Headers = list[tuple[bytes, bytes]]

REQUEST: Headers = [(b":method", b"GET"), (b":path", b"/x"), (b":scheme", b"http"), (b":authority", b"x")]
POST: Headers = [(b":method", b"POST"), *REQUEST[1:]]


@pytest.fixture(scope="module")
def lb() -> Iterator[LoadBalancer]:
    options = ("--lane", "asgi", "--command", replica("scripted"), "--load-factor", "0")
    with LoadBalancer(*options, replicas=1) as running:
        yield running
    told = [record for record in running.records if "exception" in record or "Traceback" in str(record)]
    assert not told, "nothing that a client does ends in a traceback"
    assert "secret" not in str(running.records), "and no header is logged"


@pytest.fixture(scope="module")
def echoing() -> Iterator[LoadBalancer]:
    with LoadBalancer("--lane", "asgi", "--command", replica("websockets_echo"), replicas=1) as running:
        yield running


class Client:
    """An HTTP/2 client that sends whatever it is told to."""

    def __init__(self, port: int) -> None:
        config = h2.config.H2Configuration(
            header_encoding=None,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            split_outbound_cookies=False,
        )
        self.protocol = h2.connection.H2Connection(config)
        self.events: list[h2.events.Event] = []
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.protocol.initiate_connection()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(self, headers: Headers, body: bytes | None = None, *, ends: bool = True) -> int:
        stream: int = self.protocol.get_next_available_stream_id()
        self.protocol.send_headers(stream, headers, end_stream=ends and body is None)
        if body is not None:
            self.protocol.send_data(stream, body, end_stream=ends)
        self.flush()
        return stream

    def learn_settings(self) -> None:
        """Wait for what the server allows; before that, no client may ask for a WebSocket."""
        self.flush()
        self.wait(h2.events.RemoteSettingsChanged)

    def flush(self) -> None:
        self._socket.sendall(self.protocol.data_to_send())

    def wait(self, *kinds: type[h2.events.Event], stream: int | None = None) -> h2.events.Event:
        """The next event of these kinds (of a stream); or that the connection has ended."""
        while True:
            for event in self.events:
                if isinstance(event, kinds) and stream in (None, getattr(event, "stream_id", None)):
                    self.events.remove(event)
                    return event
            data = self._socket.recv(1 << 16)
            if not data:
                return h2.events.ConnectionTerminated()
            for event in self.protocol.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    self.protocol.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self.events.append(event)
            self.flush()

    def answer(self, stream: int) -> tuple[int, bytes]:
        """Status and body of an answer; 0 if the stream was reset, or the connection ended."""
        ends = (h2.events.ResponseReceived, h2.events.StreamReset, h2.events.ConnectionTerminated)
        head = self.wait(*ends, stream=stream)
        if not isinstance(head, h2.events.ResponseReceived):
            return 0, b""
        body = b""
        while True:
            event = self.wait(
                h2.events.DataReceived, h2.events.StreamEnded, h2.events.StreamReset, stream=stream
            )
            if not isinstance(event, h2.events.DataReceived):
                return int(dict(head.headers)[b":status"]), body
            body += event.data


def seen(lb: LoadBalancer) -> int:
    return len(lb.call("GET", "/seen").json)


MALFORMED = {
    "Connection (8.2.2)": [*REQUEST, (b"connection", b"close")],
    "Transfer-Encoding (8.2.2)": [*REQUEST, (b"transfer-encoding", b"chunked")],
    "Upgrade (8.2.2)": [*REQUEST, (b"upgrade", b"h2c")],
    "Keep-Alive (8.2.2)": [*REQUEST, (b"keep-alive", b"5")],
    "Proxy-Connection (8.2.2)": [*REQUEST, (b"proxy-connection", b"close")],
    "another TE (8.2.2)": [*REQUEST, (b"te", b"gzip")],
    "an upper-case name (8.2.1)": [*REQUEST, (b"X-A", b"b")],
    "a line feed in a value (8.2.1)": [*REQUEST, (b"x-a", b"b\nsecret: 1")],
    "NUL in a value (8.2.1)": [*REQUEST, (b"x-a", b"secret\x00")],
    "two hosts (8.3.1)": [*REQUEST, (b"host", b"y")],
    "two lengths (8.1.1)": [*REQUEST, (b"content-length", b"0"), (b"content-length", b"1")],
    "no path (8.3.1)": [REQUEST[0], *REQUEST[2:]],
    "an empty path (8.3.1)": [REQUEST[0], (b":path", b""), *REQUEST[2:]],
    "a path that is none (8.3.1)": [REQUEST[0], (b":path", b"/\xff"), *REQUEST[2:]],
    "a control character in the path (8.3.1)": [REQUEST[0], (b":path", b"/a\x01"), *REQUEST[2:]],
    "a method that is none (8.3.1)": [(b":method", b"G\xffT"), *REQUEST[1:]],
}


@pytest.mark.parametrize("headers", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_request_is_never_passed_on(lb: LoadBalancer, headers: Headers) -> None:
    """RFC 9113: a stream error, or the end of the connection."""
    before = seen(lb)
    with Client(lb.port) as client:
        assert client.answer(client.ask(headers))[0] in (0, 400)
    assert seen(lb) == before


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([*REQUEST, (b"x-a", b"secret\x01")], 400),
        ([*REQUEST[:3], (b":authority", b"a b")], 400),
        ([(b":method", b"get"), *REQUEST[1:]], 501),
        ([(b":method", b"CONNECT"), (b":authority", b"x:443")], 501),
        ([(b":method", b"CONNECT"), *REQUEST[1:], (b":protocol", b"connect-udp")], 501),
        ([(b":method", b"CONNECT"), *REQUEST[1:], (b":protocol", b"websocket")], 400),
    ],
)
def test_a_request_that_cannot_be_passed_on_is_refused(
    lb: LoadBalancer, headers: Headers, status: int
) -> None:
    """RFC 9110, sections 5.5, 7.2 and 9.1; RFC 9113, section 8.5; RFC 8441 (the last has no version)."""
    before = seen(lb)
    with Client(lb.port) as client:
        assert client.answer(client.ask(headers))[0] == status
        assert client.answer(client.ask(REQUEST))[0] == 200, "and the connection goes on"
    assert seen(lb) == before + 1


@pytest.mark.parametrize(("announced", "sent"), [(b"5", b"hello, more"), (b"50", b"hello")])
def test_a_length_that_the_data_belie_ends_the_connection(
    lb: LoadBalancer, announced: bytes, sent: bytes
) -> None:
    """RFC 9113, section 8.1.1: the replica must not take it for a whole request either."""
    with Client(lb.port) as client:
        assert client.answer(client.ask([*POST, (b"content-length", announced)], sent))[0] == 0
    eventually(lambda: lb.state()["Server-1"]["in_flight"] == 0, "nothing is in flight")
    assert lb.call("GET", "/").status == 200


def test_a_body_without_a_length_is_passed_on_in_chunks(lb: LoadBalancer) -> None:
    with Client(lb.port) as client:
        status, body = client.answer(client.ask(POST, b"hello"))
    facts = json.loads(body)
    assert (status, facts["length"]) == (200, 5)
    assert "transfer-encoding: chunked" in facts["raw"].lower()
    assert "content-length" not in facts["raw"].lower()


def test_a_request_without_an_authority_is_given_a_host(lb: LoadBalancer) -> None:
    """RFC 9113, section 8.3.1; RFC 9112, section 3.2."""
    with Client(lb.port) as client:
        _, body = client.answer(client.ask([*REQUEST[:3], (b":authority", b"")]))
    assert "host: 127.0.0.1:" in json.loads(body)["raw"].lower()


def test_a_body_that_goes_on_after_an_early_answer_is_thrown_away(lb: LoadBalancer) -> None:
    """RFC 9113, section 8.1."""
    refusal = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\n\r\nlarge".hex().encode()
    with Client(lb.port) as client:
        stream = client.ask([*POST, (b"x-when", b"at-once"), (b"x-say", refusal)], b"x" * 9_000, ends=False)
        assert client.answer(stream) == (413, b"large")
        client.protocol.send_data(stream, b"x" * 9_000)
        client.protocol.send_data(stream, b"x" * 9_000, end_stream=True)
        client.flush()
        assert client.answer(client.ask(REQUEST))[0] == 200


def test_an_answer_that_breaks_off_resets_its_stream(lb: LoadBalancer) -> None:
    """RFC 9113, section 5.4.2: the client must not wait for the rest."""
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".hex().encode()
    with Client(lb.port) as client:
        stream = client.ask([*REQUEST, (b"x-say", half), (b"x-then", b"close")])
        client.wait(h2.events.ResponseReceived, stream=stream)
        begun = time.monotonic()
        assert isinstance(
            client.wait(h2.events.StreamReset, h2.events.StreamEnded, stream=stream), h2.events.StreamReset
        )
        assert time.monotonic() - begun < 2
        assert client.answer(client.ask(REQUEST))[0] == 200


def test_expect_is_answered_when_the_body_is_wanted(lb: LoadBalancer) -> None:
    """RFC 9110, section 10.1.1."""
    with Client(lb.port) as client:
        stream = client.ask([*POST, (b"expect", b"100-continue"), (b"content-length", b"5")], ends=False)
        client.wait(h2.events.InformationalResponseReceived, stream=stream)
        client.protocol.send_data(stream, b"hello", end_stream=True)
        client.flush()
        assert client.answer(stream)[0] == 200


def test_priorities_are_ignored(lb: LoadBalancer) -> None:
    """RFC 9113, section 5.3.2: also 2,000 of them."""
    with Client(lb.port) as client:
        for stream in range(101, 4101, 2):
            client.protocol.prioritize(stream, weight=16, depends_on=0)
        assert client.answer(client.ask(REQUEST))[0] == 200


class WebSocket:
    """A WebSocket on a stream (RFC 8441)."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.protocol = Connection(ConnectionType.CLIENT)
        self.stream = client.ask(
            [
                (b":method", b"CONNECT"),
                *REQUEST[1:],
                (b":protocol", b"websocket"),
                (b"sec-websocket-version", b"13"),
            ],
            ends=False,
        )
        head = client.wait(h2.events.ResponseReceived, stream=self.stream)
        assert isinstance(head, h2.events.ResponseReceived)
        self.headers = [(bytes(name), bytes(value)) for name, value in head.headers]

    def send(self, event: Event) -> None:
        self.client.protocol.send_data(self.stream, self.protocol.send(event))
        self.client.flush()

    def receive(self) -> Event | None:
        """The next event; None when the stream has ended."""
        while True:
            for event in self.protocol.events():
                return event
            part = self.client.wait(
                h2.events.DataReceived, h2.events.StreamEnded, h2.events.StreamReset, stream=self.stream
            )
            if not isinstance(part, h2.events.DataReceived):
                assert isinstance(part, h2.events.StreamEnded), "it ends in good order"
                return None
            if part.data:
                self.protocol.receive_data(part.data)


def test_a_websocket_is_closed_by_its_client_at_once(echoing: LoadBalancer) -> None:
    """RFC 8441, section 5: the client sees the end of the stream, and the replica the code and the reason."""
    with Client(echoing.port) as client:
        client.learn_settings()
        websocket = WebSocket(client)
        assert [value for name, value in websocket.headers if name == b"set-cookie"] == [
            b"seat=12; Path=/",
            b"row=3",
        ]
        websocket.send(TextMessage("hello"))
        reply = websocket.receive()
        assert isinstance(reply, TextMessage)
        begun = time.monotonic()
        websocket.send(CloseConnection(4321, "bye"))
        closed = websocket.receive()
        assert isinstance(closed, CloseConnection)
        assert closed.code == 4321
        assert websocket.receive() is None
        eventually(lambda: echoing.state()["Server-1"]["in_flight"] == 0, "the replica has closed")
        assert time.monotonic() - begun < 1
        another = WebSocket(client)
        another.send(TextMessage("who has closed"))
        told = another.receive()
        assert isinstance(told, TextMessage)
        assert "4321 bye" in told.data.split("\n")


def test_a_websocket_is_closed_by_its_replica_with_code_and_reason(echoing: LoadBalancer) -> None:
    """RFC 6455, section 7.1; RFC 8441, section 5."""
    with Client(echoing.port) as client:
        client.learn_settings()
        websocket = WebSocket(client)
        websocket.send(TextMessage("please close"))
        closed = websocket.receive()
        assert isinstance(closed, CloseConnection)
        assert (closed.code, closed.reason) == (4001, "as you wish")
        websocket.send(closed.response())
        assert websocket.receive() is None
