"""What a client may ask of the fast lane: bounds on size, number and time."""

from dataclasses import dataclass
from typing import Self

from loadbalancer.settings import Settings


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds; a request beyond them is refused, and its connection closed.

    Args:
        head: Bytes of a request's line and headers together.
        headers: Headers of a request.
        target: Bytes of its target.
        body: Bytes of its body; 0: no bound.
        head_timeout: Seconds for a head to come, from its first byte.
        idle_timeout: Seconds between two requests, or two parts of a body, or until an answer is taken.
        response_timeout: Seconds a replica may be silent.
        connect_timeout: Seconds to connect to a replica.
        queue_timeout: Seconds to wait for a connection to come back when no more can be opened.
        tunnel_idle_timeout: Seconds without a byte either way after which a tunnel or an event stream ends;
        0: none. connections: Open client connections in all; 0: no bound.
        client_connections: The same from one address.
    """

    head: int
    headers: int
    target: int
    body: int
    head_timeout: float
    idle_timeout: float
    response_timeout: float
    connect_timeout: float
    queue_timeout: float
    tunnel_idle_timeout: float
    connections: int
    client_connections: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The bounds that the options say."""
        return cls(
            head=settings.max_head,
            headers=settings.max_headers,
            target=settings.max_target,
            body=settings.max_body,
            head_timeout=settings.head_timeout,
            idle_timeout=settings.idle_timeout,
            response_timeout=settings.response_timeout,
            connect_timeout=settings.connect_timeout,
            queue_timeout=settings.queue_timeout,
            tunnel_idle_timeout=settings.tunnel_idle_timeout,
            connections=settings.max_connections,
            client_connections=settings.max_client_connections,
        )
