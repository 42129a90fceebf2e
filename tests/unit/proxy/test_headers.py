import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.proxy.headers import (
    HOP_BY_HOP,
    MEANT_NAMES,
    Header,
    first,
    may_be_trailer,
    to_client,
    to_replica,
)
from loadbalancer.proxy.request import request_id

TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ-", min_size=1, max_size=12).map(str.encode)
VALUE = st.binary(max_size=20)
ENDS_HERE = HOP_BY_HOP | {b"trailer", b"expect"}
END_TO_END = st.lists(st.tuples(TOKEN.filter(lambda name: name.lower() not in ENDS_HERE), VALUE), max_size=10)


def forwarded(
    headers: list[Header], client: str = "192.0.2.1", scheme: str = "http", via: str = ""
) -> list[Header]:
    return to_replica(headers, client=client, scheme=scheme, request_id="made-up", via=via)


def values(headers: list[Header], name: bytes) -> list[bytes]:
    return [value for candidate, value in headers if candidate.lower() == name]


@given(END_TO_END)
def test_end_to_end_headers_pass_untouched_and_in_order(headers: list[Header]) -> None:
    headers = [header for header in headers if not header[0].lower().startswith(b"x-")]
    assert forwarded(headers)[: len(headers)] == headers
    assert to_client(headers) == headers


@given(END_TO_END, st.sets(TOKEN, max_size=4))
def test_what_connection_names_is_dropped_whatever_its_case(headers: list[Header], named: set[bytes]) -> None:
    sent = [*headers, (b"Connection", b" , ".join(name.upper() for name in named))]
    dropped = {name.lower() for name in named} - {b"host", b"content-length"}
    for kept in (to_client(sent), forwarded(sent)):
        names = {name.lower() for name, _ in kept}
        assert not names & (dropped - {b"x-forwarded-for"})
        assert b"connection" not in names


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP | {b"trailer"}))
def test_hop_by_hop_headers_are_dropped_both_ways(name: bytes) -> None:
    sent = [(name.title(), b"x"), (b"Kept", b"y")]
    assert to_client(sent) == [(b"Kept", b"y")]
    assert first(forwarded(sent), name) is None


def test_the_upgrade_to_http_2_goes_with_its_settings() -> None:  # RFC 9113, section 3.1
    sent = [(b"Connection", b"Upgrade, HTTP2-Settings"), (b"Upgrade", b"h2c"), (b"HTTP2-Settings", b"AAM")]
    names = {name.lower() for name, _ in forwarded(sent)}
    assert not names & {b"connection", b"upgrade", b"http2-settings"}
    assert first(forwarded([(b"HTTP2-Settings", b"AAM")]), b"http2-settings") is None, "named or not"


@pytest.mark.parametrize("name", [b"Proxy-Authorization", b"Proxy-Authenticate"])
def test_what_is_meant_for_a_forward_proxy_passes(name: bytes) -> None:  # RFC 9110, section 11.7
    assert (name, b"x") in forwarded([(name, b"x")])
    assert to_client([(name, b"x")]) == [(name, b"x")]


# -- what Connection cannot remove (RFC 9110, section 7.6.1) ------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"Host", b"h"),
        (b"Content-Length", b"3"),
        (b"X-Request-Id", b"7"),
    ],
)
def test_connection_cannot_have_what_we_need_removed(name: bytes, value: bytes) -> None:
    sent = [(name, value), (b"Connection", b"close, " + name.upper())]
    assert values(forwarded(sent), name.lower()) == [value]


@pytest.mark.parametrize("via", ["", "10.0.0.1"])
@pytest.mark.parametrize(
    "name", [b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-request-id"]
)
def test_connection_cannot_have_removed_what_we_add(name: bytes, via: str) -> None:
    sent = [(b"Host", b"h"), (b"Connection", name), (name, b"203.0.113.7")]
    assert len(values(forwarded(sent, via=via), name)) == 1
    sent = [(b"Host", b"h"), (b"Connection", name)]
    assert len(values(forwarded(sent, via=via), name)) == 1


# -- a stranger's forwarding headers -----------------------------------------------------------------

CLAIMED = [
    (b"Forwarded", b"for=203.0.113.7;proto=https"),
    (b"X-Forwarded-For", b"203.0.113.7"),
    (b"x-forwarded-for", b"203.0.113.8"),
    (b"X-Forwarded-Proto", b"gopher"),
    (b"X-Forwarded-Host", b"evil.example"),
    (b"X-Forwarded-Port", b"444"),
    (b"X-Real-IP", b"203.0.113.7"),
]
SHADOWS = [
    (b"X_Forwarded_For", b"203.0.113.7"),
    (b"X-Forwarded_Proto", b"https"),
    (b"x_forwarded_host", b"evil.example"),
    (b"X_Real_IP", b"203.0.113.7"),
    (b"X.Forwarded.For", b"203.0.113.7"),
    (b"X_Request_Id", b"7"),
    (b"Content_Length", b"3"),
    (b"Transfer_Encoding", b"chunked"),
    (b"Proxy_Connection", b"close"),
]
OURS = [
    (b"x-forwarded-for", b"192.0.2.1"),
    (b"x-forwarded-proto", b"http"),
    (b"x-forwarded-host", b"h"),
    (b"x-request-id", b"made-up"),
]


def test_a_strangers_forwarding_headers_are_replaced() -> None:
    assert forwarded([*CLAIMED, *SHADOWS, (b"Host", b"h")]) == [(b"Host", b"h"), *OURS]


@pytest.mark.parametrize("header", CLAIMED + SHADOWS, ids=lambda header: header[0].decode())
def test_each_of_them_is_dropped_alone(header: Header) -> None:
    assert forwarded([(b"Host", b"h"), header]) == [(b"Host", b"h"), *OURS]


def test_other_names_with_an_underscore_pass() -> None:
    sent = [(b"api_key", b"1"), (b"X_Forward", b"2"), (b"content_type", b"3")]
    assert forwarded(sent)[:3] == sent


MEANT = re.compile(rb"(?i:%b)" % MEANT_NAMES)
ANY_NAME = st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=12).map(str.encode)
KNOWN = st.sampled_from(
    [name for name, _ in CLAIMED + SHADOWS + OURS] + [*HOP_BY_HOP, b"Host", b"Content-Length"]
)


@given(st.one_of(ANY_NAME, KNOWN, st.tuples(KNOWN, ANY_NAME).map(b"".join)))
def test_what_the_regular_expression_does_not_find_goes_on_as_it_is(name: bytes) -> None:
    passes = (name, b"1") in forwarded([(name, b"1")])
    exempt = name.lower() in (b"host", b"content-length", b"x-request-id")  # found, and kept
    assert bool(MEANT.fullmatch(name)) == (not passes or exempt)


@pytest.mark.parametrize(
    ("scheme", "told"), [("http", b"http"), ("https", b"https"), ("ws", b"http"), ("wss", b"https")]
)
def test_the_scheme_is_told_as_the_client_spoke(scheme: str, told: bytes) -> None:
    sent = [(b"X-Forwarded-Proto", b"gopher")]
    assert values(forwarded(sent, scheme=scheme), b"x-forwarded-proto") == [told]


def test_an_unknown_client_is_not_made_up() -> None:
    assert first(forwarded([], client=""), b"x-forwarded-for") is None
    assert first(forwarded(CLAIMED, client=""), b"x-forwarded-for") is None


# -- a trusted proxy's -------------------------------------------------------------------------------


def test_a_trusted_proxys_forwarding_headers_pass() -> None:
    told = [(name, value) for name, value in CLAIMED if name.lower() != b"x-forwarded-for"]
    assert forwarded([*CLAIMED, (b"Host", b"h")], client="203.0.113.8", via="10.0.0.1") == [
        *told,
        (b"Host", b"h"),
        (b"x-forwarded-for", b"203.0.113.7, 203.0.113.8, 10.0.0.1"),
        (b"x-request-id", b"made-up"),
    ]


def test_what_a_trusted_proxy_does_not_tell_is_added() -> None:
    for nothing in ([], [(b"X-Forwarded-Proto", b""), (b"X-Forwarded-Host", b" ")]):
        assert forwarded([(b"Host", b"h"), *nothing], client="10.0.0.1", via="10.0.0.1") == [
            (b"Host", b"h"),
            (b"x-forwarded-for", b"10.0.0.1"),
            *OURS[1:],
        ]


@pytest.mark.parametrize("header", SHADOWS, ids=lambda header: header[0].decode())
def test_a_trusted_proxy_may_have_passed_a_strangers_on(header: Header) -> None:
    headers = forwarded([(b"Host", b"h"), header], via="10.0.0.1")
    assert {name for name, _ in headers} == {b"Host", *(name for name, _ in OURS)}


# -- request ids -------------------------------------------------------------------------------------


def test_a_request_id_is_added_only_when_there_is_none() -> None:
    assert first(forwarded([]), b"x-request-id") == b"made-up"
    assert values(forwarded([(b"X-Request-ID", b"7")]), b"x-request-id") == [b"7"]


def test_an_empty_request_id_is_none_and_there_is_only_one() -> None:
    empty = (b"X-Request-Id", b" ")
    assert values(forwarded([empty]), b"x-request-id") == [b"made-up"]
    several = [empty, (b"X-Request-Id", b"7"), (b"x-request-id", b"8"), (b"Connection", b"x-request-id")]
    assert values(forwarded(several), b"x-request-id") == [b"7"]
    assert request_id(several, random.Random(1)) == "7", "the one that is logged and hashed"
    assert re.fullmatch("[0-9a-f]{32}", request_id([empty], random.Random(1)))


def test_expect_ends_here() -> None:
    assert first(forwarded([(b"Expect", b"100-continue")]), b"expect") is None


# -- trailers (RFC 9110, section 6.5.1) --------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *(
            "Content-Length",
            "Transfer-Encoding",
            "Content_Length",
            "Connection",
            "Keep-Alive",
            "TE",
            "Trailer",
            "Upgrade",
        ),
        *(
            "Host",
            "HTTP2-Settings",
            "Forwarded",
            "X-Forwarded-For",
            "X_Forwarded_For",
            "X-Real-IP",
            "X-Request-Id",
            "x_request_id",
        ),
        *(
            "Authorization",
            "Proxy-Authorization",
            "WWW-Authenticate",
            "Cookie",
            "Set-Cookie",
            "Range",
            "If-None-Match",
            "Expect",
        ),
        *(
            "Content-Type",
            "Content-Encoding",
            "Content-Range",
            "Cache-Control",
            "Max-Forwards",
            "Date",
            "Location",
            "Vary",
        ),
    ],
)
def test_what_is_no_trailer(name: str) -> None:
    assert not may_be_trailer(name.encode())


@pytest.mark.parametrize(
    "name", ["grpc-status", "grpc-message", "X-Checksum", "Content-Digest", "Server-Timing", "ETag", "x_own"]
)
def test_what_may_be_one(name: str) -> None:
    assert may_be_trailer(name.encode())
