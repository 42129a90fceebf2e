"""After an upgrade: bytes of another protocol, such as WebSocket, both ways, with half-closed connections."""

from collections.abc import Callable
from typing import Protocol

from loadbalancer.proxy.fast.upstream import UpstreamConnection


class TunnelEnd(Protocol):
    """The client's end, as a tunnel sees it."""

    def write(self, data: bytes) -> None:
        """Send bytes."""

    def close_half(self) -> None:
        """Nothing more comes."""

    def close(self) -> None:
        """End when everything is written."""

    def abort(self) -> None:
        """Break off."""


class Tunnel:
    """Joins a client with a replica.

    Args:
        client: One end.
        replica: The other.
        when_ended: Called once, with the error that has ended it, if it was one.
    """

    def __init__(
        self,
        client: TunnelEnd,
        replica: UpstreamConnection,
        when_ended: Callable[[Exception | None], None],
    ) -> None:
        self._client = client
        self._replica = replica
        self._when_ended = when_ended
        self._half_closed = False

    def from_client(self, data: bytes) -> None:
        """Pass bytes on to the replica."""
        self._replica.transport.write(data)

    def from_replica(self, data: bytes) -> None:
        """Pass bytes on to the client."""
        self._client.write(data)

    def client_has_no_more(self) -> None:
        """The client has closed its half."""
        if self._replica.transport.can_write_eof():
            self._replica.transport.write_eof()
        self._close_half()

    def replica_has_no_more(self) -> None:
        """The replica has closed its half."""
        self._client.close_half()
        self._close_half()

    def _close_half(self) -> None:
        if not self._half_closed:
            self._half_closed = True
            return
        self._replica.exchange = None
        self._replica.transport.close()
        self.ended(None)

    def ended(self, error: Exception | None) -> None:
        """The replica's connection has ended: the client's ends with it."""
        self._when_ended(error)
        if error is None:
            self._client.close()
        else:
            self._client.abort()
