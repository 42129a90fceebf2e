"""What a client may ask of the fast lane: bounds on size, number and time."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds; a request beyond them is refused, and its connection closed.

    Args:
        head: Bytes of a request's line and headers together.
        headers: Headers of a request.
        target: Bytes of its target.
        head_timeout: Seconds for a head to come, from its first byte.
        idle_timeout: Seconds between two requests, or two parts of a body, or until an answer is taken.
        response_timeout: Seconds a replica may be silent.
        connect_timeout: Seconds to connect to a replica.
        connections: Open client connections in all; 0: no bound.
    """

    head: int = 32 * 1024
    headers: int = 200
    target: int = 16 * 1024
    head_timeout: float = 15.0
    idle_timeout: float = 75.0
    response_timeout: float = 60.0
    connect_timeout: float = 1.0
    connections: int = 0
