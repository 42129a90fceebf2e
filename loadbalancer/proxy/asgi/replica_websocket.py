"""The replica's side of a WebSocket, as the HTTP library has it, and handshakes that a replica refuses."""

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp

from loadbalancer.proxy.headers import Header

MAX_REFUSAL = 64 * 1024
"""Bytes of a refused handshake's body that are passed on."""


class HandshakeRefusedError(Exception):
    """The replica answered a handshake with something other than 101."""

    def __init__(self, status: int, headers: Sequence[Header], body: bytes) -> None:
        super().__init__(f"answered {status}")
        self.status = status
        self.headers = headers
        self.body = body


async def keep_refusals(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Middleware of the HTTP session: keep a refused handshake as it was answered, redirects too.

    Raises:
        HandshakeRefusedError: The replica refuses to speak WebSocket.
    """
    response = await handler(request)
    if "Upgrade" not in request.headers or response.status == 101:
        return response
    try:
        body = await response.content.readexactly(MAX_REFUSAL)
    except asyncio.IncompleteReadError as end:
        body = end.partial
    response.close()
    raise HandshakeRefusedError(response.status, response.raw_headers, body)


class ReplicaWebSocket(aiohttp.ClientWebSocketResponse):
    """The HTTP library's WebSocket; it keeps the headers of the handshake."""

    def __init__(self, reader: Any, writer: Any, protocol: Any, response: Any, *others: Any, **named: Any):
        super().__init__(reader, writer, protocol, response, *others, **named)
        self.handshake_headers: Sequence[Header] = response.raw_headers


def headers_of(websocket: aiohttp.ClientWebSocketResponse) -> Sequence[Header]:
    """The headers with which a replica has agreed to a handshake.

    Args:
        websocket: Of a session whose WebSockets are `ReplicaWebSocket`.
    """
    return websocket.handshake_headers if isinstance(websocket, ReplicaWebSocket) else ()
