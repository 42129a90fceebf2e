"""HAProxy's PROXY protocol: the header in which a proxy of bytes names the client of a connection.

It is the first thing on a connection, before TLS. There are two versions, a line of text and a binary
one; both fit into one TCP segment. Nothing here reads from a socket: `read_header` is given what has come
so far, so that a lane can look at the bytes (MSG_PEEK) and then take exactly the header off the connection.

Source: HAProxy's `doc/proxy-protocol.txt`, sections 2.1 (version 1) and 2.2 (version 2).
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from loadbalancer.proxy.forwarding import plain

MAX_HEADER = 536
"""Bytes of the longest header that is read: what the smallest TCP segment holds."""

MAX_LINE = 107
"""Bytes of the longest header of version 1, with its end of line (section 2.1)."""

_V1 = b"PROXY "
_V2 = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = 16
"""Bytes of a header of version 2 before its addresses."""

_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
_LOCAL, _PROXY = 0, 1
_UNSPECIFIED, _TCP4, _TCP6 = 0x00, 0x11, 0x21
_OTHER_FAMILIES = frozenset({0x12, 0x22, 0x31, 0x32})
"""Datagrams and Unix sockets: valid, but they name no client of a TCP connection."""


class ProxyProtocolError(Exception):
    """What has come is not a header of the PROXY protocol; the text says why."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a header says.

    Args:
        source: Plain address of the client. None: the header names none, as for the proxy's own health
            checks (LOCAL, UNKNOWN), and the connection's own peer is the client.
        port: Port of the client; 0 if there is no source.
        length: Bytes of the header.
    """

    source: str | None
    port: int
    length: int


def read_header(data: bytes) -> ProxyHeader | None:
    """Read a header from the beginning of a connection.

    Args:
        data: What has come so far; `MAX_HEADER` bytes always suffice.

    Returns:
        The header, or None if more bytes are needed.

    Raises:
        ProxyProtocolError: The bytes do not begin with a header.
    """
    if data.startswith(_V1):
        return _read_line(data)
    if data.startswith(_V2):
        return _read_binary(data)
    if _V1.startswith(data) or _V2.startswith(data):
        return None
    raise ProxyProtocolError("the connection does not begin with a PROXY protocol header")


def _read_line(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, MAX_LINE)
    if end < 0:
        if len(data) < MAX_LINE:
            return None
        raise ProxyProtocolError(f"the PROXY protocol line is longer than {MAX_LINE} bytes")
    length = end + 2
    protocol, *fields = data[len(_V1) : end].split(b" ")
    if protocol == b"UNKNOWN":
        return ProxyHeader(None, 0, length)
    if protocol not in (b"TCP4", b"TCP6"):
        raise ProxyProtocolError("the PROXY protocol line names neither TCP4, TCP6 nor UNKNOWN")
    if len(fields) != 4:
        raise ProxyProtocolError("the PROXY protocol line does not have two addresses and two ports")
    source, _ = (_text_address(protocol, field) for field in fields[:2])
    port, _ = (_text_port(field) for field in fields[2:])
    return ProxyHeader(source, port, length)


def _text_address(protocol: bytes, field: bytes) -> str:
    kind = IPv4Address if protocol == b"TCP4" else IPv6Address
    try:
        if b"%" in field:
            raise ValueError("a zone means nothing on another machine")
        return plain(str(kind(field.decode("ascii"))))
    except ValueError:
        raise ProxyProtocolError(f"the PROXY protocol line has a malformed {kind.__name__}") from None


def _text_port(field: bytes) -> int:
    if not _PORT.fullmatch(field) or int(field) > 65535:
        raise ProxyProtocolError("the PROXY protocol line has a malformed port")
    return int(field)


def _read_binary(data: bytes) -> ProxyHeader | None:
    if len(data) < _FIXED:
        return None
    version, command = divmod(data[12], 16)
    family = data[13]
    size = int.from_bytes(data[14:16], "big")
    if version != 2:
        raise ProxyProtocolError(f"the PROXY protocol header is of version {version}, which is unknown")
    if command not in (_LOCAL, _PROXY):
        raise ProxyProtocolError(f"the PROXY protocol header has the unknown command {command}")
    length = _FIXED + size
    if length > MAX_HEADER:
        raise ProxyProtocolError(f"the PROXY protocol header is longer than {MAX_HEADER} bytes")
    if len(data) < length:
        return None
    if command == _LOCAL:
        return ProxyHeader(None, 0, length)  # whatever its family says (section 2.2)
    return _binary_source(family, data[_FIXED:length])


def _binary_source(family: int, block: bytes) -> ProxyHeader:
    """Read two addresses and two ports; the extensions (TLVs) behind them are skipped."""
    length = _FIXED + len(block)
    if family == _UNSPECIFIED or family in _OTHER_FAMILIES:
        return ProxyHeader(None, 0, length)
    if family not in (_TCP4, _TCP6):
        raise ProxyProtocolError(f"the PROXY protocol header has the unknown family 0x{family:02x}")
    size = 4 if family == _TCP4 else 16
    if len(block) < 2 * size + 4:
        raise ProxyProtocolError("the PROXY protocol header is too short for its addresses")
    source = str(IPv4Address(block[:size]) if family == _TCP4 else IPv6Address(block[:size]))
    return ProxyHeader(plain(source), int.from_bytes(block[2 * size : 2 * size + 2], "big"), length)
