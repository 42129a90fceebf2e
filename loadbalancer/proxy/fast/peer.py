"""The other end of a client's connection: what stays the same for all its requests."""

from collections.abc import Callable
from dataclasses import dataclass, field

from loadbalancer.proxy.forwarding import Identity, TrustedProxies
from loadbalancer.proxy.headers import Header


@dataclass(slots=True)
class Peer:
    """The other end of a client's connection.

    Args:
        address: Its address; empty if unknown.
        scheme: `http` or `https`: as it speaks.
        host: Tells our own address and port, for HTTP/1.0 requests without Host.
        proxies: The proxies whose forwarding headers are believed.
    """

    address: str
    scheme: str
    host: Callable[[], bytes]
    proxies: TrustedProxies
    trusted: bool = field(init=False)
    """Whether it is one of those proxies."""
    forwarded: bytes = field(init=False)
    """The forwarding headers of its requests, as far as the value of `X-Forwarded-Host`, unless it is
    trusted."""

    def __post_init__(self) -> None:
        self.trusted = self.proxies.trusts(self.address)
        self.forwarded = b"x-forwarded-for: %b\r\nx-forwarded-proto: %b\r\nx-forwarded-host: " % (
            self.address.encode(),
            self.scheme.encode(),
        )

    def identify(self, headers: list[Header]) -> Identity:
        """Who a request comes from.

        Args:
            headers: Of the request.
        """
        if not self.trusted:
            return Identity(self.address, self.scheme, via="")
        return self.proxies.identify(headers, peer=self.address, scheme=self.scheme)
