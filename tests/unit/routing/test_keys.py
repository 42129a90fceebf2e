"""The key of a request, for each rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.routing.keys import KeyRule

RULES = ["request-id", "client-ip", "path", "header:X-User", "cookie:sid", "query:user"]


def key(
    rule: str,
    headers: list[tuple[bytes, bytes]] | None = None,
    path: bytes = b"/a",
    query: bytes = b"",
    client: str = "192.0.2.7",
) -> str:
    return KeyRule.parse(rule).key(headers or [], path, query, client, "the-id")


def test_the_request_id() -> None:
    assert key("request-id", [(b"x-request-id", b"not looked at: the lane has it")]) == "the-id"


def test_the_client_address() -> None:
    assert key("client-ip") == "192.0.2.7"
    assert key("client-ip", client="") == "the-id"


@pytest.mark.parametrize(
    ("path", "expected"), [(b"/a/b%20c", "/a/b%20c"), (b"/\xff", "/\xff"), (b"*", "*"), (b"", "the-id")]
)
def test_the_path_as_sent(path: bytes, expected: str) -> None:
    assert key("path", path=path, query=b"x=1") == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"x-user", b"ann")], "ann"),
        ([(b"host", b"h"), (b"x-user", b"  ann\t")], "ann"),
        ([(b"x-user", b"ann"), (b"x-user", b"bob")], "ann"),
        ([(b"x-user", b" "), (b"x-user", b"bob")], "bob"),
        ([(b"x-user", b"\xe9\x00\xff")], "\xe9\x00\xff"),
        ([(b"x-user", b"")], "the-id"),
        ([(b"x-users", b"ann")], "the-id"),
        ([], "the-id"),
    ],
)
def test_a_header(headers: list[tuple[bytes, bytes]], expected: str) -> None:
    assert key("header:X-User", headers) == expected


@pytest.mark.parametrize(
    ("cookies", "expected"),
    [
        ([b"sid=1"], "1"),
        ([b"a=b; sid=1; c=d"], "1"),
        ([b"a=b;sid=1;c=d"], "1"),
        ([b"a=b", b"sid=1"], "1"),
        ([b"sid=1; sid=2"], "1"),
        ([b"sid=a=b=="], "a=b=="),
        ([b'sid="1"'], '"1"'),
        ([b" sid = 1 "], "1"),
        ([b"sid=; sid=2"], "2"),
        ([b"sid=\xff%00"], "\xff%00"),
        ([b"SID=1"], "the-id"),
        ([b"xsid=1; sidx=2; a=sid"], "the-id"),
        ([b"sid"], "the-id"),
        ([b"sid="], "the-id"),
        ([b";;=;==;"], "the-id"),
        ([], "the-id"),
    ],
)
def test_a_cookie(cookies: list[bytes], expected: str) -> None:
    assert key("cookie:sid", [(b"cookie", cookie) for cookie in cookies]) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"user=ann", "ann"),
        (b"a=1&user=ann&b=2", "ann"),
        (b"user=ann&user=bob", "ann"),
        (b"user=&user=bob", "bob"),
        (b"user=a%20b", "a b"),
        (b"user=a+b", "a b"),
        (b"us%65r=ann", "ann"),
        (b"user=a=b", "a=b"),
        (b"user=%ff%zz%", "\xff%zz%"),
        (b"User=ann", "the-id"),
        (b"xuser=1&userx=2&user", "the-id"),
        (b"user=", "the-id"),
        (b"&&=&==", "the-id"),
        (b"", "the-id"),
    ],
)
def test_a_query_parameter(query: bytes, expected: str) -> None:
    assert key("query:user", query=query) == expected


@pytest.mark.parametrize("rule", RULES)
@given(st.binary(), st.binary(), st.binary(), st.binary())
def test_every_request_has_a_key_whatever_its_bytes(
    rule: str, one: bytes, other: bytes, path: bytes, query: bytes
) -> None:
    headers = [(b"x-user", one), (b"cookie", b"sid=" + other), (b"cookie", one)]
    assert key(rule, headers, path, b"user=" + query)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ip",
        "Path",
        "path:",
        "path:x",
        "request-id:x",
        "client-ip:",
        "header",
        "header:",
        "cookie:",
        "query",
        ":x",
        "body:x",
    ],
)
def test_a_rule_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not request-id, client-ip"):
        KeyRule.parse(text)


def test_header_names_ignore_case_and_cookie_names_do_not() -> None:
    assert KeyRule.parse("header:X-User") == KeyRule.parse("header:x-uSER")
    assert KeyRule.parse("cookie:Sid") != KeyRule.parse("cookie:sid")
