"""A web page of another site cannot use `/add` or `/rm`, whichever way it makes the browser send requests."""

from collections.abc import Iterator

import pytest

from tests.harness import LoadBalancer

TOKEN = "sesame"
BROWSER = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"}
FORM = {"Content-Type": "text/plain"}
"""A type of body that a page may send to another site without a preflight request: that of a form."""

EVIL = {"Origin": "http://evil.example"}


@pytest.fixture(scope="module", params=[("fast", ""), ("asgi", ""), ("fast", TOKEN)], ids=str)
def lb(request: pytest.FixtureRequest) -> Iterator[LoadBalancer]:
    lane, token = request.param
    with LoadBalancer("--lane", lane, replicas=1, env={"LB_ADMIN_TOKEN": token}) as running:
        yield running


def status_of(
    lb: LoadBalancer, method: str, target: str, headers: dict[str, str], body: bytes | None = None
) -> int:
    """Send a request with the right token, because a page may make a browser send it; return the status."""
    reply = lb.call(method, target, body, {"Authorization": f"Bearer {TOKEN}", **headers})
    if reply.status == 403:
        assert reply.json["status"] == "failure"
        assert "page" in reply.json["message"]
    return reply.status


@pytest.mark.parametrize(
    ("method", "target", "body", "headers"),
    [
        pytest.param(
            "GET", "/add?n=1", None, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "image"}, id="img"
        ),
        pytest.param("GET", "/rm?n=1", None, {"Referer": "http://evil.example/"}, id="img over plain HTTP"),
        pytest.param("GET", "/%61dd?n=1", None, {"Sec-Fetch-Site": "cross-site"}, id="escaped"),
        pytest.param("HEAD", "/add?n=1", None, {"Sec-Fetch-Site": "cross-site"}, id="HEAD"),
        pytest.param(
            "POST", "/add", b'{"n": 1}', {"Sec-Fetch-Site": "cross-site", **EVIL, **FORM}, id="form"
        ),
        pytest.param("POST", "/add", b'{"n": 1}', {**EVIL, **FORM}, id="form over plain HTTP"),
        pytest.param("POST", "/add", b'{"n": 1}', {"Origin": "null", **FORM}, id="sandboxed frame"),
        pytest.param(
            "POST",
            "/add?n=1",
            None,
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
            id="fetch",
        ),
        pytest.param("DELETE", "/rm?n=1", None, {"Sec-Fetch-Site": "same-site"}, id="subdomain"),
        pytest.param("DELETE", "/rm?n=1", None, {"Origin": "http://127.0.0.1:1"}, id="other port"),
    ],
)
def test_a_page_of_another_site_changes_nothing(
    lb: LoadBalancer, method: str, target: str, body: bytes | None, headers: dict[str, str]
) -> None:
    before = lb.members()
    if method == "HEAD":  # the answer has no body
        assert (
            lb.call(method, target, None, {"Authorization": f"Bearer {TOKEN}", **BROWSER, **headers}).status
            == 403
        )
    else:
        assert status_of(lb, method, target, {**BROWSER, **headers}, body) == 403
    assert lb.members() == before


def test_a_preflight_allows_nothing(lb: LoadBalancer) -> None:
    asked = {**BROWSER, **EVIL, "Sec-Fetch-Site": "cross-site", "Access-Control-Request-Method": "DELETE"}
    reply = lb.call("OPTIONS", "/rm", None, {"Authorization": f"Bearer {TOKEN}", **asked})
    assert not [name for name in reply.headers if name.lower().startswith("access-control-")]


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH"])
def test_paths_under_lb_that_do_not_exist_yet_are_protected(lb: LoadBalancer, method: str) -> None:
    assert status_of(lb, method, "/lb/not-yet", {**BROWSER, "Sec-Fetch-Site": "cross-site"}) == 403
    assert status_of(lb, method, "/lb/not-yet", {}) == 404


@pytest.mark.parametrize("sender", ["curl", "typed by the user", "own page", "own page, plain HTTP"])
def test_programs_users_and_pages_of_this_site_may_change(lb: LoadBalancer, sender: str) -> None:
    own = {"Origin": f"http://127.0.0.1:{lb.port}"}
    headers = {
        "curl": {"User-Agent": "curl/8.5.0"},
        "typed by the user": {**BROWSER, "Sec-Fetch-Site": "none"},
        "own page": {**BROWSER, **own, "Sec-Fetch-Site": "same-origin"},
        "own page, plain HTTP": {**BROWSER, **own},
    }[sender]
    before = lb.members()
    assert status_of(lb, "GET", "/add?n=1&hostnames=mine", headers) == 200
    assert lb.members() == [*before, "mine"]
    assert status_of(lb, "GET", "/rm?n=1&hostnames=mine", headers) == 200
    assert lb.members() == before


@pytest.mark.parametrize("path", ["/rep", "/lb/health", "/lb/replicas"])
def test_pages_of_other_sites_may_send_requests_that_only_read(lb: LoadBalancer, path: str) -> None:
    assert status_of(lb, "GET", path, {**BROWSER, **EVIL, "Sec-Fetch-Site": "cross-site"}) == 200
