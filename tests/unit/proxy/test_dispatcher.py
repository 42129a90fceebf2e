from typing import Any

import pytest

from loadbalancer.proxy.admin_paths import is_admin
from loadbalancer.proxy.asgi.dispatcher import Dispatcher


@pytest.mark.parametrize("path", ["/rep", "/add", "/rm", "/lb", "/lb/", "/lb/replicas", "/lb/x/y"])
def test_its_own_paths(path: str) -> None:
    assert is_admin(path)


@pytest.mark.parametrize(
    "path", ["/", "/rep/", "/replica", "/adder", "/rmx", "/lbx", "/LB/", "/home", "//rep"]
)
def test_all_other_paths_are_the_replicas(path: str) -> None:
    assert not is_admin(path)


async def dispatched(raw_path: str, method: str = "GET") -> tuple[str, Any]:
    """Where a request went, and what it had become; or the status it was refused with."""
    seen: list[tuple[str, Any]] = []

    def application(name: str) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append((name, scope))

        return app

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            seen.append((str(message["status"]), None))

    scope: Any = {
        "type": "http",
        "method": method,
        "raw_path": raw_path.encode(),
        "query_string": b"",
        "http_version": "1.1",
        "path": raw_path,
        "headers": [(b"host", b"asked.example"), (b"x", b"y")],
    }
    receive: Any = None
    await Dispatcher(application("admin"), application("lane"))(scope, receive, send)
    return seen[0]


@pytest.mark.parametrize(
    ("target", "where", "host", "path"),
    [
        ("http://shop.example/a%20b", "lane", b"shop.example", b"/a%20b"),
        ("HTTPS://shop.example:8443/", "lane", b"shop.example:8443", b"/"),
        ("http://shop.example", "lane", b"shop.example", b"/"),
        ("http://user:secret@shop.example/x", "lane", b"shop.example", b"/x"),
        ("http://[2001:db8::1]:80/x", "lane", b"[2001:db8::1]:80", b"/x"),
        ("http://shop.example/lb/health", "admin", b"shop.example", b"/lb/health"),
        ("http://shop.example/r%65p", "admin", b"shop.example", b"/r%65p"),
    ],
)
async def test_absolute_targets_are_rewritten(target: str, where: str, host: bytes, path: bytes) -> None:
    went, scope = await dispatched(target)
    assert went == where
    assert scope["raw_path"] == path
    assert scope["headers"] == [(b"x", b"y"), (b"host", host)]


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("CONNECT", "shop.example:443", "501"),
        ("GET", "*", "400"),
        ("GET", "ftp://x/", "400"),
        ("GET", "http:///path", "400"),
        ("GET", "nonsense", "400"),
        ("GET", "/path#fragment", "400"),
        ("GET", "http://a/b#c", "400"),
    ],
)
async def test_targets_in_no_form_are_refused(method: str, target: str, status: str) -> None:
    assert (await dispatched(target, method))[0] == status
