import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.proxy.headers import HOP_BY_HOP, Header, first, to_client, to_replica

TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ-", min_size=1, max_size=12).map(str.encode)
VALUE = st.binary(max_size=20)
END_TO_END = st.lists(
    st.tuples(TOKEN.filter(lambda name: name.lower() not in HOP_BY_HOP | {b"expect"}), VALUE), max_size=10
)


def forwarded(headers: list[Header], client: str = "192.0.2.1", scheme: str = "http") -> list[Header]:
    return to_replica(headers, client=client, scheme=scheme, request_id="made-up")


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


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_hop_by_hop_headers_are_dropped_both_ways(name: bytes) -> None:
    sent = [(name.title(), b"x"), (b"Kept", b"y")]
    assert to_client(sent) == [(b"Kept", b"y")]
    assert first(forwarded(sent), name) is None


def test_connection_cannot_have_host_or_length_removed() -> None:
    sent = [(b"host", b"h"), (b"content-length", b"3"), (b"connection", b"host, content-length")]
    assert first(forwarded(sent), b"host") == b"h"
    assert first(forwarded(sent), b"content-length") == b"3"


def test_forwarded_for_joins_all_that_came_before() -> None:
    sent = [(b"X-Forwarded-For", b"10.0.0.1"), (b"x-forwarded-for", b"10.0.0.2, 10.0.0.3")]
    values = [value for name, value in forwarded(sent) if name == b"x-forwarded-for"]
    assert values == [b"10.0.0.1, 10.0.0.2, 10.0.0.3, 192.0.2.1"]


@pytest.mark.parametrize(
    ("scheme", "told"), [("http", b"http"), ("https", b"https"), ("ws", b"http"), ("wss", b"https")]
)
def test_the_scheme_is_told_as_the_client_spoke(scheme: str, told: bytes) -> None:
    sent = [(b"X-Forwarded-Proto", b"gopher")]
    assert [v for n, v in forwarded(sent, scheme=scheme) if n == b"x-forwarded-proto"] == [told]


def test_an_unknown_client_is_not_made_up() -> None:
    assert first(forwarded([], client=""), b"x-forwarded-for") is None


def test_a_request_id_is_added_only_when_there_is_none() -> None:
    assert first(forwarded([]), b"x-request-id") == b"made-up"
    given_id = forwarded([(b"X-Request-ID", b"7")])
    assert [value for name, value in given_id if name.lower() == b"x-request-id"] == [b"7"]


def test_expect_ends_here() -> None:
    assert first(forwarded([(b"Expect", b"100-continue")]), b"expect") is None
