"""HAProxy's header, both versions: every form of the specification, any bytes, any cut."""

import socket
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadbalancer.proxy.proxy_protocol import (
    MAX_HEADER,
    MAX_LINE,
    ProxyHeader,
    ProxyProtocolError,
    read_header,
)
from tests.fuzzing import mutated, tried

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LOCAL, PROXY = 0x20, 0x21

PORTS = st.integers(0, 65535)


def binary(command: int, family: int, block: bytes) -> bytes:
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", len(block)) + block


def tcp4(source: str, port: int, rest: bytes = b"") -> bytes:
    block = socket.inet_pton(socket.AF_INET, source) + bytes([192, 0, 2, 9]) + struct.pack("!HH", port, 443)
    return binary(PROXY, 0x11, block + rest)


def tcp6(source: str, port: int, rest: bytes = b"") -> bytes:
    block = socket.inet_pton(socket.AF_INET6, source) + bytes(16) + struct.pack("!HH", port, 443)
    return binary(PROXY, 0x21, block + rest)


GOOD = [
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", "192.0.2.1", 56324),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255", 65535),
    (b"PROXY TCP6 2001:db8::1 2001:db8::2 1 0\r\n", "2001:db8::1", 1),
    (b"PROXY TCP6 2001:DB8:0:0::1 ::1 1 0\r\n", "2001:db8::1", 1),
    (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 0\r\n", "192.0.2.1", 1),
    (b"PROXY TCP6 %b %b 65535 65535\r\n" % ((b":".join([b"ffff"] * 8),) * 2), ":".join(["ffff"] * 8), 65535),
    (b"PROXY UNKNOWN\r\n", None, 0),
    (b"PROXY UNKNOWN %b %b 65535 65535\r\n" % ((b":".join([b"ffff"] * 8),) * 2), None, 0),
    (tcp4("192.0.2.1", 56324), "192.0.2.1", 56324),
    (tcp4("192.0.2.1", 56324, b"\x01\x00\x02h2"), "192.0.2.1", 56324),
    (tcp6("2001:db8::1", 7), "2001:db8::1", 7),
    (tcp6("::ffff:192.0.2.1", 7), "192.0.2.1", 7),
    (binary(LOCAL, 0x00, b""), None, 0),
    (binary(LOCAL, 0x11, b"whatever"), None, 0),
    (binary(LOCAL, 0xFF, b""), None, 0),
    (binary(PROXY, 0x00, b"whatever"), None, 0),
    (binary(PROXY, 0x12, bytes(12)), None, 0),
    (binary(PROXY, 0x31, bytes(216)), None, 0),
    (tcp4("192.0.2.1", 1, bytes(MAX_HEADER - 28)), "192.0.2.1", 1),
]
CORPUS = [header for header, _, _ in GOOD]

BAD = [
    (b"GET / HTTP/1.1\r\n", "does not begin with"),
    (b"\x16\x03\x01\x02\x00", "does not begin with"),
    (b"\r\n\r\n\0\r\nQUIT\r", "does not begin with"),
    (b"proxy TCP4 192.0.2.1 192.0.2.2 1 1\r\n", "does not begin with"),
    (b"PROXY  TCP4 192.0.2.1 192.0.2.2 1 1\r\n", "names neither"),
    (b"PROXY \r\n", "names neither"),
    (b"PROXY TCP5 192.0.2.1 192.0.2.2 1 1\r\n", "names neither"),
    (b"PROXY TCP4\r\n", "two addresses"),
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n", "two addresses"),
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 1 \r\n", "two addresses"),
    (b"PROXY TCP4 192.0.2.1  192.0.2.2 1 1\r\n", "two addresses"),
    (b"PROXY TCP4 192.0.2 192.0.2.2 1 1\r\n", "malformed IPv4Address"),
    (b"PROXY TCP4 192.0.2.01 192.0.2.2 1 1\r\n", "malformed IPv4Address"),
    (b"PROXY TCP4 192.0.2.1 192.0.2.256 1 1\r\n", "malformed IPv4Address"),
    (b"PROXY TCP4 ::1 ::1 1 1\r\n", "malformed IPv4Address"),
    (b"PROXY TCP6 192.0.2.1 ::1 1 1\r\n", "malformed IPv6Address"),
    (b"PROXY TCP6 fe80::1%eth0 ::1 1 1\r\n", "malformed IPv6Address"),
    (b"PROXY TCP6 \xff ::1 1 1\r\n", "malformed IPv6Address"),
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 1\r\n", "malformed port"),
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 01\r\n", "malformed port"),
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 1\r\n", "malformed port"),
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 \r\n", "malformed port"),
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 1\n\r\n", "malformed port"),
    (b"PROXY UNKNOWN " + b"x" * MAX_LINE, f"longer than {MAX_LINE}"),
    (b"PROXY UNKNOWN " + b"x" * (MAX_LINE - 15) + b"\r\n", f"longer than {MAX_LINE}"),
    (SIGNATURE + b"\x11\x11\x00\x00", "version 1"),
    (SIGNATURE + b"\x31\x11\x00\x00", "version 3"),
    (binary(0x22, 0x11, bytes(12)), "command 2"),
    (binary(PROXY, 0x10, bytes(12)), "family 0x10"),
    (binary(PROXY, 0x41, bytes(40)), "family 0x41"),
    (binary(PROXY, 0x11, bytes(11)), "too short"),
    (binary(PROXY, 0x21, bytes(35)), "too short"),
    (SIGNATURE + b"\x21\x11" + struct.pack("!H", MAX_HEADER - 15), f"longer than {MAX_HEADER}"),
    (SIGNATURE + b"\x20\x00\xff\xff", f"longer than {MAX_HEADER}"),
]


def outcome(data: bytes) -> ProxyHeader | str | None:
    try:
        return read_header(data)
    except ProxyProtocolError as error:
        return str(error)


@pytest.mark.parametrize(("header", "source", "port"), GOOD)
def test_a_header_is_read_and_nothing_behind_it(header: bytes, source: str | None, port: int) -> None:
    assert len(header) <= MAX_HEADER
    for rest in (b"", b"\r\n", b"GET / HTTP/1.1\r\n\r\n", SIGNATURE):
        assert read_header(header + rest) == ProxyHeader(source, port, len(header))


@pytest.mark.parametrize("header", CORPUS)
def test_less_than_a_header_wants_more(header: bytes) -> None:
    assert [read_header(header[:size]) for size in range(len(header))] == [None] * len(header)


@pytest.mark.parametrize(("data", "why"), BAD)
def test_what_is_no_header_is_refused_with_a_sentence(data: bytes, why: str) -> None:
    with pytest.raises(ProxyProtocolError, match=why):
        read_header(data)


@given(st.ip_addresses(), st.ip_addresses(), PORTS, PORTS)
def test_every_line_that_a_sender_may_write_is_read(
    source: IPv4Address | IPv6Address, target: IPv4Address | IPv6Address, port: int, other: int
) -> None:
    target = type(source)(int(target) % 2**source.max_prefixlen)
    line = f"PROXY TCP{source.version} {source} {target} {port} {other}\r\n".encode()
    expected = getattr(source, "ipv4_mapped", None) or source
    assert read_header(line) == ProxyHeader(str(expected), port, len(line))


@given(st.ip_addresses(), PORTS, st.binary(max_size=400))
def test_every_binary_header_is_read_and_its_extensions_skipped(
    source: IPv4Address | IPv6Address, port: int, extensions: bytes
) -> None:
    header = (tcp4 if source.version == 4 else tcp6)(str(source), port, extensions)
    expected = getattr(source, "ipv4_mapped", None) or source
    assert read_header(header) == ProxyHeader(str(expected), port, len(header))


@tried(400)
@given(st.one_of(st.binary(max_size=700), mutated(CORPUS), st.binary(max_size=20).map(SIGNATURE.__add__)))
@example(b"")
@example(b"PROXY ")
@example(SIGNATURE)
def test_any_bytes_end_in_one_outcome_however_they_are_cut(data: bytes) -> None:
    whole = outcome(data)
    assert (whole is None) <= (len(data) < MAX_HEADER), "enough bytes always suffice"
    if isinstance(whole, ProxyHeader):
        assert 0 < whole.length <= min(len(data), MAX_HEADER)
    # What has been decided once stays so, whatever comes behind it: reading piece by piece ends the same.
    decided = [found for size in range(len(data) + 1) if (found := outcome(data[:size])) is not None]
    assert all(found == whole for found in decided)
