"""Who a request comes from, as replicas and the log are told: clients and proxies are real connections.

A proxy is played by this machine's own address, 127.0.0.1, and a stranger by 127.0.0.2.
"""

import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.harness import LoadBalancer, replica

PROXY, STRANGER = "127.0.0.1", "127.0.0.2"

CLAIMS = {
    "Forwarded": "for=203.0.113.7;proto=https",
    "X-Forwarded-For": "198.51.100.1, 203.0.113.7",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "shop.example",
    "X-Forwarded-Port": "443",
    "X-Real-IP": "203.0.113.7",
}
SHADOWS = {
    "X_Forwarded_For": "192.0.2.66",
    "X_Real_IP": "192.0.2.66",
    "X_Request_Id": "66",
    "Content_Length": "66",
}


def start(lane: str) -> LoadBalancer:
    options = ("--command", replica("odd"), "--access-log", "--trusted-proxies", "10.0.0.0/8")
    return LoadBalancer("--lane", lane, "--trusted-proxies", PROXY, *options, replicas=1)


@pytest.fixture(scope="module", params=["fast", "asgi"])
def lane(request: pytest.FixtureRequest) -> str:
    """Every case is one of both lanes."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def each(lane: str) -> Iterator[LoadBalancer]:
    with start(lane) as running:
        yield running


def ask(lb: LoadBalancer, source: str, headers: Mapping[str, str]) -> dict[str, list[str]]:
    """Send a request from an address of this machine; the headers that the replica got."""
    fields = {"Host": "lb.example", **headers, "Connection": headers.get("Connection", "") + ", close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    with socket.create_connection((PROXY, lb.port), timeout=20, source_address=(source, 0)) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\n{head}\r\n".encode())
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
    got: dict[str, list[str]] = {}
    for name, value in json.loads(received.partition(b"\r\n\r\n")[2])["headers"]:
        got.setdefault(name.lower(), []).append(value)
    return got


def logged(lb: LoadBalancer, got: Mapping[str, Any]) -> dict[str, Any]:
    return lb.wait_for("request", request_id=got["x-request-id"][0])


@pytest.mark.parametrize("connection", ["", "X-Forwarded-For, X-Forwarded-Proto, X-Request-Id, Host"])
def test_a_strangers_claims_are_replaced(each: LoadBalancer, connection: str) -> None:
    got = ask(each, STRANGER, {**CLAIMS, **SHADOWS, "X-Kept": "1", "Connection": connection})
    assert got.pop("x-request-id") != ["66"]
    assert got == {
        "host": ["lb.example"],
        "x-kept": ["1"],
        "x-forwarded-for": [STRANGER],
        "x-forwarded-proto": ["http"],
        "x-forwarded-host": ["lb.example"],
    }


def test_a_stranger_is_logged_by_its_own_address(each: LoadBalancer) -> None:
    got = ask(each, STRANGER, {**CLAIMS, "X-Request-Id": "a stranger's", "Connection": "X-Request-Id"})
    assert got["x-request-id"] == ["a stranger's"]
    assert logged(each, got)["client"] == STRANGER


def test_an_empty_request_id_is_replaced(each: LoadBalancer) -> None:
    [request_id] = ask(each, STRANGER, {"X-Request-Id": ""})["x-request-id"]
    assert len(request_id) == 32


def test_a_trusted_proxy_is_believed(each: LoadBalancer) -> None:
    got = ask(each, PROXY, {**CLAIMS, **SHADOWS})
    assert got.keys() & {name.lower() for name in SHADOWS} == set(), "it may have passed these on"
    assert got["forwarded"] == [CLAIMS["Forwarded"]]
    assert got["x-forwarded-for"] == [f"198.51.100.1, 203.0.113.7, {PROXY}"]
    assert got["x-forwarded-proto"] == ["https"]
    assert got["x-forwarded-host"] == ["shop.example"]
    assert got["x-forwarded-port"] == ["443"]
    assert got["x-real-ip"] == ["203.0.113.7"]
    assert logged(each, got)["client"] == "203.0.113.7"


def test_a_websocket_is_told_the_same(each: LoadBalancer) -> None:
    """The replica refuses the handshake with the headers that it got."""
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13"}
    handshake = {"Upgrade": "websocket", "Connection": "Upgrade", **key}
    got = ask(each, PROXY, {**CLAIMS, **handshake})
    assert got["upgrade"] == ["websocket"]
    assert got["x-forwarded-for"] == [f"198.51.100.1, 203.0.113.7, {PROXY}"]
    assert got["x-forwarded-proto"] == ["https"]
    got = ask(each, STRANGER, {**CLAIMS, **SHADOWS, **handshake})
    assert (got["x-forwarded-for"], got["x-forwarded-proto"]) == ([STRANGER], ["http"])
    assert got.keys() & {"forwarded", "x-real-ip", "x_forwarded_for"} == set()


def test_the_client_is_found_behind_several_trusted_proxies(each: LoadBalancer) -> None:
    got = ask(each, PROXY, {"X-Forwarded-For": "198.51.100.1, 203.0.113.8, 10.1.2.3"})
    assert got["x-forwarded-for"] == [f"198.51.100.1, 203.0.113.8, 10.1.2.3, {PROXY}"]
    assert logged(each, got)["client"] == "203.0.113.8"


def test_what_a_trusted_proxy_does_not_tell_is_added(each: LoadBalancer) -> None:
    got = ask(each, PROXY, {})
    assert got["x-forwarded-for"] == [PROXY]
    assert got["x-forwarded-proto"] == ["http"]
    assert got["x-forwarded-host"] == ["lb.example"]
    assert logged(each, got)["client"] == PROXY


def test_requests_are_hashed_on_the_client_that_the_proxy_tells(lane: str) -> None:
    options = ("--lane", lane, "--hash-on", "client-ip", "--load-factor", "0", "--trusted-proxies", PROXY)
    with LoadBalancer(*options, "--command", replica("odd"), "--access-log", replicas=3) as lb:

        def of(client: str, source: str = PROXY) -> str:
            got = ask(lb, source, {"X-Forwarded-For": client})
            name: str = logged(lb, got)["replica"]
            return name

        clients = [f"203.0.113.{n}" for n in range(40)]
        first = {client: of(client) for client in clients}
        assert len(set(first.values())) == 3, "they are told apart"
        assert {client: of(client) for client in clients} == first, "and each stays where it was"
        assert len({of(client, STRANGER) for client in clients}) == 1, "a stranger is one client"


def test_ipv4_on_an_ipv6_socket_is_plain_ipv4(lane: str) -> None:
    """A listener on `::` sees 127.0.0.2 as ::ffff:127.0.0.2."""
    options = ("--lane", lane, "--host", "::", "--trusted-proxies", PROXY, "--command", replica("odd"))
    with LoadBalancer(*options, "--access-log", replicas=1) as lb:
        got = ask(lb, STRANGER, CLAIMS)
        assert got["x-forwarded-for"] == [STRANGER]
        assert logged(lb, got)["client"] == STRANGER
        assert ask(lb, PROXY, CLAIMS)["x-forwarded-for"] == [f"{CLAIMS['X-Forwarded-For']}, {PROXY}"]
