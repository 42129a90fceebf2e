"""Who a request comes from: what strangers claim, and what trusted proxies tell."""

import re
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadbalancer.proxy.forwarding import (
    FORWARDING_NAMES,
    Identity,
    TrustedProxies,
    believed_scheme,
    folded,
    is_forwarding,
    plain,
)

Header = tuple[bytes, bytes]

IN_ONE_REGEX = re.compile(rb"(?i:%b)" % FORWARDING_NAMES)
TOKEN = st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=12).map(str.encode)

FORWARDING = [
    *("Forwarded", "FORWARDED", "X-Forwarded-For", "x-forwarded-for", "X_Forwarded_For", "X-Forwarded_Proto"),
    *(
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "X-Forwarded-Client-Cert",
        "X-Forwarded-",
    ),
    *("X-Real-IP", "x_real_ip", "X.Forwarded.For", "X!Forwarded~For", "X-Real.IP"),
]
OTHERS = [
    "X-Forward",
    "X-Forwarded",
    "X-Forwardedfor",
    "XForwardedFor",
    "Forwarded-By",
    "X-Real-IPs",
    "Via",
    "Host",
]


@pytest.mark.parametrize("name", FORWARDING)
def test_forwarding_headers_are_known_however_they_are_spelled(name: str) -> None:
    assert is_forwarding(folded(name.encode()))
    assert IN_ONE_REGEX.fullmatch(name.encode())


@pytest.mark.parametrize("name", OTHERS)
def test_other_headers_are_none(name: str) -> None:
    assert not is_forwarding(folded(name.encode()))
    assert not IN_ONE_REGEX.fullmatch(name.encode())


@given(st.one_of(TOKEN, st.tuples(st.sampled_from(FORWARDING), TOKEN).map(lambda p: p[0].encode() + p[1])))
def test_the_regular_expression_is_the_function(name: bytes) -> None:
    assert bool(IN_ONE_REGEX.fullmatch(name)) == is_forwarding(folded(name))


@given(TOKEN)
def test_folding_is_what_a_server_does_that_makes_one_name_of_all_separators(name: bytes) -> None:
    assert folded(name) == re.sub(rb"[^0-9a-z]", b"-", name.lower())


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::FFFF:0a00:0001", "10.0.0.1"),
        ("0:0:0:0:0:ffff:10.0.0.1", "10.0.0.1"),
        ("::1", "::1"),
        ("::10.0.0.1", "::10.0.0.1"),
        ("2001:db8::ffff:10.0.0.1", "2001:db8::ffff:10.0.0.1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("", ""),
        ("no:address", "no:address"),
    ],
)
def test_ipv4_in_ipv6_form_is_plain_ipv4(address: str, expected: str) -> None:
    assert plain(address) == expected


@pytest.mark.parametrize(
    ("networks", "address", "trusted"),
    [
        ([], "10.0.0.1", False),
        (["10.0.0.0/8"], "10.255.0.1", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        (["10.0.0.0/8"], "::ffff:10.0.0.1", True),
        (["::ffff:10.0.0.0/104"], "10.0.0.1", True),
        (["::ffff:10.0.0.0/104"], "11.0.0.1", False),
        (["10.1.2.3/8"], "10.0.0.1", True),
        (["192.0.2.1"], "192.0.2.1", True),
        (["192.0.2.1"], "192.0.2.2", False),
        (["192.0.2.1", "fe80::/10"], "fe80::1%eth0", True),
        (["fe80::/10"], "fe80::1", True),
        (["::/0"], "10.0.0.1", False),
        (["::/0"], "2001:db8::1", True),
        (["0.0.0.0/0"], "203.0.113.9", True),
        (["0.0.0.0/0", "::/0"], "", False),
        (["0.0.0.0/0", "::/0"], "/run/socket", False),
    ],
)
def test_a_peer_is_trusted_by_its_address(networks: list[str], address: str, trusted: bool) -> None:
    assert TrustedProxies(networks).trusts(address) is trusted


@pytest.mark.parametrize("text", ["10.0.0.0/33", "10.0.0", "proxy.example", "", "10.0.0.0/8,::1", "::1/129"])
def test_an_impossible_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        TrustedProxies([text])


TRUSTED = TrustedProxies(["10.0.0.0/8", "fd00::/8"])


@pytest.mark.parametrize(
    ("hops", "client"),
    [
        ([], "10.0.0.1"),
        ([b""], "10.0.0.1"),
        ([b"203.0.113.7"], "203.0.113.7"),
        ([b"203.0.113.7, 10.0.0.2"], "203.0.113.7"),
        ([b"203.0.113.7", b"10.0.0.2", b"fd00::1"], "203.0.113.7"),
        ([b"198.51.100.1, 203.0.113.7, 10.0.0.2"], "203.0.113.7"),
        ([b"10.0.0.3, 203.0.113.7"], "203.0.113.7"),
        ([b"10.0.0.3,10.0.0.2"], "10.0.0.3"),
        ([b"203.0.113.7, unknown, 10.0.0.2"], "10.0.0.2"),
        ([b"203.0.113.7, "], "10.0.0.1"),
        ([b"garbage"], "10.0.0.1"),
        ([b"203.0.113.7 10.0.0.2"], "10.0.0.1"),
        ([b"203.0.113.7:4711"], "203.0.113.7"),
        ([b"203.0.113.007"], "10.0.0.1"),
        ([b"203.0.113.7%eth0"], "10.0.0.1"),
        ([b"[203.0.113.7]"], "10.0.0.1"),
        ([b"2001:DB8:0::1"], "2001:db8::1"),
        ([b"[2001:db8::1]:4711"], "2001:db8::1"),
        ([b"[2001:db8::1]"], "2001:db8::1"),
        ([b"fe80::1%eth0"], "fe80::1"),
        ([b"::ffff:203.0.113.7"], "203.0.113.7"),
        ([b"198.51.100.1, ::ffff:10.0.0.9"], "198.51.100.1"),
        ([b"\xff\xfe"], "10.0.0.1"),
    ],
)
def test_the_client_is_the_rightmost_address_that_is_not_trusted(hops: list[bytes], client: str) -> None:
    assert TRUSTED.client("10.0.0.1", hops) == client


@given(st.lists(st.binary(max_size=40), max_size=5))
@example([b"1" * 10_000])
@example([b":" * 10_000])
def test_any_bytes_give_an_address(hops: list[bytes]) -> None:
    assert str(ip_address(TRUSTED.client("10.0.0.1", hops)))


@given(st.lists(st.ip_addresses(v=4), max_size=6))
def test_a_client_cannot_choose_what_it_counts_as(claimed: list[IPv4Address]) -> None:
    """Whatever it claims, its own address was put on the right by the proxy that is trusted."""
    claim = ", ".join(map(str, claimed)).encode()
    assert TRUSTED.client("10.0.0.1", [claim, b"203.0.113.7, 10.0.0.2"]) == "203.0.113.7"


@pytest.mark.parametrize(
    ("told", "scheme"),
    [
        (b"https", "https"),
        (b"HTTPS", "https"),
        (b" https , http", "https"),
        (b"http,https", "http"),
        (b"wss", "https"),
        (b"ws", "http"),
        (b"gopher", ""),
        (b"", ""),
        (b"https evil", ""),
    ],
)
def test_the_scheme_of_a_trusted_proxy_is_http_or_https(told: bytes, scheme: str) -> None:
    assert believed_scheme(told) == scheme


HEADERS = [(b"X-Forwarded-For", b"203.0.113.7"), (b"X-FORWARDED-PROTO", b"https")]


def identify(headers: list[Header], peer: str, scheme: str = "http") -> Identity:
    return TRUSTED.identify(headers, peer=peer, scheme=scheme)


def test_a_trusted_proxy_is_believed() -> None:
    assert identify(HEADERS, "10.0.0.1") == Identity("203.0.113.7", "https", via="10.0.0.1")
    assert identify(HEADERS, "::ffff:10.0.0.1") == Identity("203.0.113.7", "https", via="10.0.0.1")
    assert identify([], "10.0.0.1", "ws") == Identity("10.0.0.1", "ws", via="10.0.0.1")
    assert identify([(b"x-forwarded-proto", b"gopher")], "10.0.0.1").scheme == "http"


@pytest.mark.parametrize("peer", ["192.0.2.1", "::1", ""])
def test_a_stranger_is_not(peer: str) -> None:
    assert identify(HEADERS, peer) == Identity(peer, "http", via="")
    assert TrustedProxies([]).identify(HEADERS, peer=peer, scheme="ws") == Identity(peer, "ws", via="")


def test_a_stranger_has_a_plain_address_too() -> None:
    assert identify([], "::ffff:192.0.2.1").client == "192.0.2.1"


@pytest.mark.parametrize("name", [b"X_Forwarded_For", b"X.Forwarded.For", b"Forwarded", b"X-Real-IP"])
def test_the_address_is_read_from_x_forwarded_for_alone(name: bytes) -> None:
    assert identify([(name, b"203.0.113.7")], "10.0.0.1").client == "10.0.0.1"
