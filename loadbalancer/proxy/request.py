"""A request as the proxy sees it: its head, whichever lane has parsed it."""

import random
from dataclasses import dataclass

import structlog

from loadbalancer.errors import LoadBalancerError
from loadbalancer.proxy.headers import Header, first
from loadbalancer.routing.keys import KeyRule

log = structlog.get_logger("loadbalancer.proxy")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The head of one request.

    Args:
        method: As sent.
        path: As sent, percent-encoded, without the query.
        query: As sent, without the question mark.
        headers: As received, names in lower case.
        client: Address of the client; empty if unknown.
        scheme: `http` or `https`, or `ws` or `wss`.
        request_id: What `X-Request-Id` says, or a random one.
        via: Address of the trusted proxy that has passed the request on; empty: there is none.
    """

    method: str
    path: bytes
    query: bytes
    headers: list[Header]
    client: str
    scheme: str
    request_id: str
    via: str = ""

    @property
    def target(self) -> str:
        """Path and query, in the origin form of RFC 9112, section 3.2.1."""
        return (self.path + b"?" + self.query if self.query else self.path).decode("latin-1")

    def key(self, rule: KeyRule) -> str:
        """What the request is hashed on."""
        return rule.key(self.headers, self.path, self.query, self.client, self.request_id)


def log_failure(head: RequestHead, error: LoadBalancerError) -> None:
    """Log why a request has failed.

    Args:
        head: The request.
        error: Why.
    """
    log.warning(
        "request failed",
        reason=str(error),
        method=head.method,
        target=head.target,
        request_id=head.request_id,
    )


def given_id(headers: list[Header]) -> str:
    """The id that a request came with: the first that is not empty; empty if there is none.

    Args:
        headers: The request's headers, names in lower case.
    """
    given = first(((name, value) for name, value in headers if value.strip()), b"x-request-id")
    return given.decode("latin-1") if given else ""


def request_id(headers: list[Header], rng: random.Random) -> str:
    """The id that a request came with, or a random one of 128 bits.

    Args:
        headers: The request's headers, names in lower case.
        rng: Source of made-up ids.
    """
    return given_id(headers) or rng.randbytes(16).hex()


class RequestIds:
    """Makes up random ids of 128 bits, many at a time: so each costs next to nothing.

    Args:
        rng: Where they come from.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._ready: list[str] = []

    def make(self) -> str:
        """One more id, of 32 hexadecimal digits."""
        if not self._ready:
            digits = self._rng.randbytes(16 * 256).hex()
            self._ready = [digits[start : start + 32] for start in range(0, len(digits), 32)]
        return self._ready.pop()
