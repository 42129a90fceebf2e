"""WebSockets in the ASGI lane: a handshake with the replica, then messages pumped both ways.

The two connections are WebSockets of their own, so pings, masks and compression end at each; messages,
subprotocol, close codes and reasons are passed on, and so are the headers of the replica's handshake.
A replica that refuses the handshake refuses it for the load balancer too.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from yarl import URL

from loadbalancer.proxy.accounting import Entry
from loadbalancer.proxy.asgi.answer_head import answer_headers, handshake_headers
from loadbalancer.proxy.asgi.replica_websocket import HandshakeRefusedError, headers_of
from loadbalancer.proxy.asgi.upstream_http import as_upstream_errors, text
from loadbalancer.proxy.headers import Header, to_replica
from loadbalancer.proxy.request import RequestHead
from loadbalancer.routing.upstream import Upstream

MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes of one message, in either direction; Hypercorn's default."""

CLOSE_WITHIN = 5.0
"""Seconds that a replica may take to close its side."""

NORMAL, GOING_AWAY, BAD_GATEWAY = 1000, 1001, 1014
"""Close codes (RFC 6455, section 7.4; IANA's registry)."""

NO_STATUS, ABNORMAL = 1005, 1006
"""Codes that stand for the absence of one and are never sent."""


@dataclass(frozen=True, slots=True)
class Close:
    """How a side has closed (RFC 6455, section 7.1).

    Args:
        code: As sent; `NO_STATUS` or `ABNORMAL` if none was.
        reason: In words.
    """

    code: int
    reason: str

    def code_or(self, abnormal: int) -> int:
        """The code to tell the other side.

        Args:
            abnormal: The code if this side has broken off.
        """
        return {NO_STATUS: NORMAL, ABNORMAL: abnormal}.get(self.code, self.code)


@dataclass(frozen=True, slots=True)
class Handshake:
    """How to reach the replica.

    Args:
        session: Of `Sessions`.
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

    Raises:
        UpstreamError: There is no handshake with the replica.
    """
    name = upstream.hostname
    try:
        replica = await handshake(upstream, head, subprotocols)
    except HandshakeRefusedError as refusal:
        headers = answer_headers(name, refusal.status, refusal.headers)
        headers = [(n, v) for n, v in headers if n.lower() != b"content-length"]
        headers.append((b"content-length", str(len(refusal.body)).encode()))
        entry.status = refusal.status
        await refuse(send, refusal.status, headers, refusal.body)
        entry.complete = True
        return
    told = Close(ABNORMAL, "")
    try:
        headers = handshake_headers(name, headers_of(replica))
        await send({"type": "websocket.accept", "subprotocol": replica.protocol, "headers": headers})
        entry.status = 101
        told = await _pump(replica, receive, send)
        entry.complete = True
    finally:
        # Of no effect where the replica has closed first.
        await replica.close(code=told.code_or(GOING_AWAY), message=told.reason.encode())


async def refuse(send: ASGISendCallable, status: int, headers: list[Header], body: bytes) -> None:
    """Answer a handshake with something other than a WebSocket.

    Args:
        send: ASGI's send.
        status: Of the answer.
        headers: Of the answer.
        body: The whole of it.
    """
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body, "more_body": False})


async def _pump(
    replica: aiohttp.ClientWebSocketResponse, receive: ASGIReceiveCallable, send: ASGISendCallable
) -> Close:
    """Pass messages both ways until one side closes; returns how it did."""
    tasks = [
        asyncio.create_task(_from_client(replica, receive)),
        asyncio.create_task(_from_replica(replica, send)),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return next(task.result() for task in done)


async def _from_client(replica: aiohttp.ClientWebSocketResponse, receive: ASGIReceiveCallable) -> Close:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            # Hypercorn's own types know of no reason; the lane's streams tell it.
            return Close(message["code"], str(message.get("reason") or ""))
        if message["type"] != "websocket.receive":
            raise AssertionError(message["type"])
        try:
            if (text := message["text"]) is not None:
                await replica.send_str(text)
            elif (data := message["bytes"]) is not None:
                await replica.send_bytes(data)
        except ConnectionError:
            # The other task sees the replica's end, and how it closed.
            await asyncio.Future()


async def _from_replica(replica: aiohttp.ClientWebSocketResponse, send: ASGISendCallable) -> Close:
    while True:
        message = await replica.receive()
        if message.type is aiohttp.WSMsgType.TEXT:
            await send({"type": "websocket.send", "bytes": None, "text": message.data})
        elif message.type is aiohttp.WSMsgType.BINARY:
            await send({"type": "websocket.send", "bytes": message.data, "text": None})
        elif message.type is aiohttp.WSMsgType.CLOSE:
            closed = Close(message.data or NO_STATUS, message.extra or "")
            break
        else:
            closed = Close(ABNORMAL, "")
            break
    await send({"type": "websocket.close", "code": closed.code_or(BAD_GATEWAY), "reason": closed.reason})
    return closed
