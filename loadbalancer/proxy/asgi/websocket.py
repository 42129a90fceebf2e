"""WebSockets in the ASGI lane: a handshake with the replica, then messages pumped both ways.

The two connections are WebSockets of their own, so pings, masks and compression end at each; messages,
subprotocol and close codes are passed on. A replica that refuses the handshake refuses it for us too.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from yarl import URL

from loadbalancer.answers import answer, encode
from loadbalancer.errors import LoadBalancerError
from loadbalancer.proxy.accounting import Entry
from loadbalancer.proxy.asgi.upstream_http import as_upstream_errors, text
from loadbalancer.proxy.headers import Header, to_client, to_replica
from loadbalancer.proxy.request import RequestHead
from loadbalancer.routing.upstream import Upstream

MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes of one message, in either direction; Hypercorn's default."""

MAX_REFUSAL = 64 * 1024
"""Bytes of a refused handshake's body that are passed on."""

CLOSE_WITHIN = 5.0
"""Seconds that a replica may take to close its side."""

GOING_AWAY, BAD_GATEWAY = 1001, 1014
"""Close codes (RFC 6455, section 7.4; IANA's registry)."""

NO_STATUS, ABNORMAL = 1005, 1006
"""Codes that stand for the absence of one and are never sent."""


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


@dataclass(frozen=True, slots=True)
class Handshake:
    """How to reach the replica.

    Args:
        session: With `keep_refusals` among its middlewares.
        timeout: Seconds that the replica may take to answer.
        connect_timeout: Seconds that it may take to accept the connection.
    """

    session: aiohttp.ClientSession
    timeout: float
    connect_timeout: float

    async def __call__(
        self, upstream: Upstream, head: RequestHead, subprotocols: Sequence[str]
    ) -> aiohttp.ClientWebSocketResponse:
        """Open a WebSocket to a replica.

        Raises:
            HandshakeRefusedError: It does not want to.
            UpstreamError: It cannot be reached, or makes no sense.
            UpstreamTimeoutError: It does not answer.
        """
        headers = to_replica(
            head.headers, client=head.client, scheme=head.scheme, request_id=head.request_id, via=head.via
        )
        with as_upstream_errors(upstream, self.connect_timeout, self.timeout):
            async with asyncio.timeout(self.timeout):
                return await self.session.ws_connect(
                    URL(f"http://{upstream.address}{head.target}", encoded=True),
                    protocols=subprotocols,
                    headers=[(n, v) for n, v in text(headers) if not n.startswith("sec-websocket-")],
                    max_msg_size=MAX_MESSAGE,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_WITHIN),
                )


async def tunnel(
    upstream: Upstream,
    handshake: Handshake,
    head: RequestHead,
    subprotocols: Sequence[str],
    receive: ASGIReceiveCallable,
    send: ASGISendCallable,
    entry: Entry,
) -> None:
    """Join a client's WebSocket with a replica's until either closes.

    Args:
        upstream: The replica; the caller counts the request.
        handshake: Opens the replica's side.
        head: The client's handshake.
        subprotocols: What the client offers.
        receive: ASGI's receive, after `websocket.connect`.
        send: ASGI's send.
        entry: Where the outcome is noted.
    """
    try:
        replica = await handshake(upstream, head, subprotocols)
    except HandshakeRefusedError as refusal:
        headers = [(n, v) for n, v in to_client(refusal.headers) if n.lower() != b"content-length"]
        headers.append((b"content-length", str(len(refusal.body)).encode()))
        await _refuse(send, entry, refusal.status, headers, refusal.body)
        return
    try:
        await send({"type": "websocket.accept", "subprotocol": replica.protocol, "headers": []})
        entry.status = 101
        await _pump(replica, receive, send)
        entry.complete = True
    finally:
        await replica.close(code=GOING_AWAY)


async def refuse(send: ASGISendCallable, entry: Entry, error: LoadBalancerError) -> None:
    """Answer a handshake with an error of ours.

    Args:
        send: ASGI's send.
        entry: Where the outcome is noted.
        error: What is wrong.
    """
    ours = answer(error)
    await _refuse(send, entry, ours.status, encode(ours), ours.body)


async def _refuse(
    send: ASGISendCallable, entry: Entry, status: int, headers: list[Header], body: bytes
) -> None:
    entry.status = status
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body, "more_body": False})
    entry.complete = True


async def _pump(
    replica: aiohttp.ClientWebSocketResponse, receive: ASGIReceiveCallable, send: ASGISendCallable
) -> None:
    """Pass messages both ways until one side closes, then let the other close too."""
    tasks = {
        asyncio.create_task(_from_client(replica, receive)),
        asyncio.create_task(_from_replica(replica, send)),
    }
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _from_client(replica: aiohttp.ClientWebSocketResponse, receive: ASGIReceiveCallable) -> None:
    while True:
        message = await receive()
        if message["type"] != "websocket.receive":
            return
        try:
            if (text := message["text"]) is not None:
                await replica.send_str(text)
            elif (data := message["bytes"]) is not None:
                await replica.send_bytes(data)
        except ConnectionError:
            return  # the other task sees the replica's end, and why


async def _from_replica(replica: aiohttp.ClientWebSocketResponse, send: ASGISendCallable) -> None:
    async for message in replica:
        if message.type is aiohttp.WSMsgType.TEXT:
            await send({"type": "websocket.send", "bytes": None, "text": message.data})
        elif message.type is aiohttp.WSMsgType.BINARY:
            await send({"type": "websocket.send", "bytes": message.data, "text": None})
    code = replica.close_code
    if code == NO_STATUS:
        code = 1000
    elif code is None or code == ABNORMAL:
        code = BAD_GATEWAY
    await send({"type": "websocket.close", "code": code, "reason": None})
