"""Who a request comes from: forwarding headers, and the proxies that are trusted to set them.

A proxy in front of this one tells the address, scheme and host of its client in forwarding headers. Any
client can send such headers, so only those of proxies named by `--trusted-proxies` are believed and
passed on; from all others they are dropped, and `headers.to_replica` writes its own. With
`--proxy-protocol`, the *peer* below is the source that the header of `proxy_protocol` names.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

SEPARATORS = rb"[-!#$%&'*+.^_`|~]"
"""Regular expression of one separator in a header's name: what a token (RFC 9110, section 5.6.2) has
beside letters and digits. CGI (RFC 3875, section 4.1.18) turns `-` into `_`, and some servers turn the
others into `_` as well, so a name with any of them may reach an application as the name with `-`."""

_FOLDING = bytes.maketrans(
    b"!#$%&'*+.^_`|~ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"--------------abcdefghijklmnopqrstuvwxyz"
)
_IPV6 = rb"([0-9A-Fa-f]*:[0-9A-Fa-f:.]*)(?:%[^\]]*)?"
_HOP = re.compile(rb"([0-9.]+)(?::\d+)?|%b|\[%b\](?::\d+)?" % (_IPV6, _IPV6))
"""One address in `X-Forwarded-For`: some proxies add a port, and brackets around IPv6."""


def folded(name: bytes) -> bytes:
    """A header's name as servers compare it: in lower case, every separator a `-`.

    Args:
        name: As sent.
    """
    return name.translate(_FOLDING)


def spellings(name: bytes) -> bytes:
    """A regular expression of all names that `folded` makes one of, if it ignores case.

    Args:
        name: As `folded` gives it.
    """
    return name.replace(b"-", SEPARATORS)


FORWARDING_NAMES = b"|".join(
    (b"forwarded", spellings(b"x-real-ip"), spellings(b"x-forwarded-") + rb"[-!#$%&'*+.^_`|~0-9a-z]*")
)
"""Alternatives of a regular expression that ignores case: the names for which `is_forwarding` holds."""


def is_forwarding(name: bytes) -> bool:
    """Whether a header tells who a request comes from: `Forwarded`, `X-Forwarded-…` or `X-Real-IP`.

    Args:
        name: As `folded` gives it.
    """
    return name.startswith(b"x-forwarded-") or name in (b"forwarded", b"x-real-ip")


def plain(address: str) -> str:
    """An address in its plain form: IPv4 in IPv6 form (RFC 4291, section 2.5.5.2) becomes IPv4.

    Args:
        address: As the kernel or a proxy writes it; what is no address stays as it is.
    """
    if ":" not in address:
        return address
    try:
        mapped = IPv6Address(address).ipv4_mapped
    except ValueError:
        return address
    return address if mapped is None else str(mapped)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a request comes from, as far as that can be believed.

    Args:
        client: Address of the client; empty if unknown.
        scheme: As the client spoke it.
        via: Address of the trusted proxy that has passed the request on; empty if the peer is not trusted.
    """

    client: str
    scheme: str
    via: str


class TrustedProxies:
    """The proxies whose forwarding headers are believed.

    Args:
        networks: Addresses and networks in CIDR notation.

    Raises:
        ValueError: One of them is neither.
    """

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = tuple(_plain_network(ip_network(text, strict=False)) for text in networks)

    def trusts(self, address: str) -> bool:
        """Whether a peer is one of them, which stays so for as long as its connection.

        Args:
            address: Of the peer. IPv4 in IPv6 form counts as IPv4, and an IPv6 zone is ignored. The peer of
                a Unix socket has the address "", which no network holds: it is not trusted.
        """
        if not self._networks:
            return False
        try:
            parsed = ip_address(plain(address.partition("%")[0]))
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)

    def client(self, peer: str, hops: Iterable[bytes]) -> str:
        """The address of the client behind a trusted proxy.

        It is the rightmost address that is not itself a trusted proxy's, since whatever stands left of it
        may be made up (as in nginx with `real_ip_recursive on`). If all are trusted, it is the leftmost.
        What is no address ends the search at the address before it.

        Args:
            peer: Plain address of the trusted proxy.
            hops: The values of `X-Forwarded-For`, in their order.
        """
        client = peer
        for hop in reversed(b",".join(hops).split(b",")):
            address = _address(hop.strip(b" \t"))
            if address is None:
                break
            client = address
            if not self.trusts(client):
                break
        return client

    def identify(self, headers: Iterable[tuple[bytes, bytes]], *, peer: str, scheme: str) -> Identity:
        """Find out who a request comes from.

        Args:
            headers: As received.
            peer: Address of the other end of the connection; empty if it has none.
            scheme: As the peer spoke it.
        """
        peer = plain(peer)
        if not self.trusts(peer):
            return Identity(peer, scheme, via="")
        hops: list[bytes] = []
        told = b""
        for name, value in headers:
            match name.lower():
                case b"x-forwarded-for":
                    hops.append(value)
                case b"x-forwarded-proto":
                    told = told or value
        return Identity(self.client(peer, hops), believed_scheme(told) or scheme, via=peer)


def believed_scheme(told: bytes) -> str:
    """The scheme that a trusted proxy's `X-Forwarded-Proto` tells; empty if it is neither HTTP nor HTTPS.

    Args:
        told: Its value. Of a list, as several proxies make it, the first is the client's.
    """
    match told.partition(b",")[0].strip(b" \t").lower():
        case b"https" | b"wss":
            return "https"
        case b"http" | b"ws":
            return "http"
    return ""


def _address(hop: bytes) -> str | None:
    match = _HOP.fullmatch(hop)
    if match is None:
        return None
    try:
        parsed = ip_address((match[1] or match[2] or match[3]).decode("ascii"))
    except ValueError:
        return None
    return plain(str(parsed))


def _plain_network(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """A network of IPv4 addresses in IPv6 form is one of plain IPv4 addresses."""
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped: IPv4Address | None = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network
