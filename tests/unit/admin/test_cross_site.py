"""Changes that a web page of another site requests are refused (W3C Fetch Metadata; RFC 6454)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from loadbalancer.admin.cross_site import check_site, is_change
from loadbalancer.errors import ForbiddenError

BROWSER = ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")
CURL = ("User-Agent", "curl/8.5.0")
HOST = ("Host", "lb.example:5000")
OWN = ("Origin", "http://lb.example:5000")
CHANGES = [
    ("POST", "/add"),
    ("DELETE", "/rm"),
    ("GET", "/add"),
    ("GET", "/rm"),
    ("HEAD", "/add"),
    ("POST", "/lb/x"),
]


def site(value: str) -> tuple[str, str]:
    return ("Sec-Fetch-Site", value)


def passes(method: str, path: str, *headers: tuple[str, str]) -> bool:
    try:
        check_site(method, path, Headers([*headers]))
    except ForbiddenError:
        return False
    return True


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize(
    "headers",
    [
        [CURL],
        [],
        [BROWSER, site("none")],
        [BROWSER, site("same-origin")],
        [BROWSER, site("same-origin"), OWN],
        [BROWSER, OWN],
        [BROWSER, ("Origin", "HTTP://LB.example:5000")],
        [BROWSER, ("Origin", "https://lb.example:5000")],
    ],
)
def test_programs_users_and_pages_of_this_site_may_change(
    method: str, path: str, headers: list[tuple[str, str]]
) -> None:
    assert passes(method, path, HOST, *headers)


@pytest.mark.parametrize(("method", "path"), CHANGES)
@pytest.mark.parametrize(
    "headers",
    [
        [BROWSER, site("cross-site")],
        [BROWSER, site("cross-site"), OWN],
        [BROWSER, site("same-site"), ("Origin", "http://other.lb.example:5000")],
        [BROWSER, site("same-site")],
        [BROWSER, site("something new")],
        [BROWSER, site("")],
        [BROWSER, site("none"), site("cross-site")],
        [BROWSER, site("same-origin"), ("Origin", "null")],
        [BROWSER, ("Origin", "null")],
        [BROWSER, ("Origin", "")],
        [BROWSER, ("Origin", "http://evil.example")],
        [BROWSER, ("Origin", "http://lb.example")],
        [BROWSER, ("Origin", "http://lb.example:5001")],
        [BROWSER, ("Origin", "http://lb.example:5000.evil.example")],
        [BROWSER, ("Origin", "http://evil.example/lb.example:5000")],
        [BROWSER, ("Origin", "http://evil.example@lb.example:5000")],
        [BROWSER, ("Origin", "file://lb.example:5000")],
        [BROWSER, ("Origin", "lb.example:5000")],
        [BROWSER, OWN, ("Origin", "http://evil.example")],
        [CURL, ("Origin", "http://evil.example")],
    ],
)
def test_pages_of_other_sites_are_refused(method: str, path: str, headers: list[tuple[str, str]]) -> None:
    assert not passes(method, path, HOST, *headers)


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("https://lb.example", "lb.example", True),
        ("https://lb.example", "lb.example:443", True),
        ("http://lb.example", "LB.example:80", True),
        ("https://lb.example:8443", "lb.example", False),
        ("http://127.0.0.1:5000", "localhost:5000", False),
        ("http://[::1]:5000", "[::1]:5000", True),
        ("http://[::80]", "[::80]", True),
        ("http://[::80]", "[:", False),
        ("http://lb.example", "", False),
    ],
)
def test_host_and_port_must_match_but_the_scheme_may_differ(origin: str, host: str, own: bool) -> None:
    assert passes("POST", "/add", ("Host", host), ("Origin", origin)) is own


def test_a_get_of_a_browser_without_either_header_is_refused() -> None:
    """Browsers send neither header for an image over plain HTTP, whatever the site of the page is."""
    assert not passes("GET", "/add", HOST, BROWSER)
    assert not passes("HEAD", "/rm", HOST, BROWSER)
    assert passes("POST", "/add", HOST, BROWSER), "a browser sends Origin with every POST: this is a program"


@pytest.mark.parametrize(
    "path", ["/rep", "/lb/replicas", "/lb/health", "/lb/events", "/lb/", "/lb/openapi.json"]
)
def test_pages_of_other_sites_may_send_requests_that_only_read(path: str) -> None:
    assert passes("GET", path, HOST, BROWSER, site("cross-site"), ("Origin", "http://evil.example"))
    assert passes("OPTIONS", "/add", HOST, BROWSER, site("cross-site"), ("Origin", "http://evil.example"))


@given(st.text(max_size=10), st.sampled_from(["/add", "/rm", "/rep", "/lb/deploy"]))
def test_every_method_except_the_reading_ones_is_a_change(method: str, path: str) -> None:
    assert is_change(method, path) or method in ("GET", "HEAD", "OPTIONS")
