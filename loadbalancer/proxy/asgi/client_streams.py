"""Hypercorn's streams, one for each request or WebSocket of a client, with what they lack.

`HttpStream` can ask for a body that the client holds back. `WebsocketStream` tells how a client has closed.
`Inbox` is where the application receives from; it never holds up the reading of a connection that has ended.
"""

import asyncio
from collections import deque
from typing import Any, cast

from hypercorn.protocol.events import (
    Body,
    Data,
    EndBody,
    EndData,
    Event,
    InformationalResponse,
    Response,
    StreamClosed,
)
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.protocol.ws_stream import ASGIWebsocketState, FrameTooLargeError, WSStream
from hypercorn.typing import ASGIReceiveEvent, ASGISendEvent
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Message, Ping
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError

from loadbalancer.answers import answer, encode, failure

CONTINUE = cast(ASGISendEvent, {"type": "http.response.continue"})
"""What an application sends to have `100 Continue` sent: ASGI has no event for it."""


class Inbox:
    """What a client has sent to one application, in order.

    Args:
        size: Events that wait at most; another has to wait until one is taken.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._events: deque[ASGIReceiveEvent] = deque()
        self._last: ASGIReceiveEvent | None = None
        """That the client has gone; nothing comes after it."""
        self._room = asyncio.Event()
        self._arrived = asyncio.Event()

    async def put(self, event: ASGIReceiveEvent) -> None:
        """Add an event. After the client has gone, others are dropped.

        Args:
            event: As ASGI has it.
        """
        if event["type"] in ("http.disconnect", "websocket.disconnect"):
            self._last = self._last or event
            self._room.set()
            self._arrived.set()
            return
        while len(self._events) >= self._size and self._last is None:
            self._room.clear()
            await self._room.wait()
        if self._last is None:
            self._events.append(event)
            self._arrived.set()

    async def get(self) -> ASGIReceiveEvent:
        """Take the next event; ASGI's receive."""
        while not self._events and self._last is None:
            self._arrived.clear()
            await self._arrived.wait()
        if not self._events:
            return cast(ASGIReceiveEvent, self._last)
        self._room.set()
        return self._events.popleft()


class HttpStream(HTTPStream):
    """A request and its answer."""

    @property
    def reason(self) -> str | None:
        """The reason phrase that the application wants; None for the standard one."""
        start: dict[str, Any] = getattr(self, "response", {})  # set when the application begins an answer
        return start.get("reason")

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """Take an event of the application; None: it has ended."""
        if message is not CONTINUE:
            await super().app_send(message)
        elif not self.closed and self.state is ASGIHTTPState.REQUEST:
            await self.send(InformationalResponse(self.stream_id, headers=[], status_code=100))

    async def _send_error_response(self, status_code: int) -> None:
        """Answer for an application that has failed before its own answer."""
        ours = (
            answer(RuntimeError()) if status_code == 500 else failure(status_code, "this is not served here")
        )
        await self.send(Response(self.stream_id, headers=encode(ours), status_code=status_code))
        if self.scope["method"] != "HEAD":
            await self.send(Body(self.stream_id, data=ours.body))
        await self.send(EndBody(self.stream_id))
        self.state = ASGIHTTPState.CLOSED


class WebsocketStream(WSStream):
    """A WebSocket; the application hears at once that the client has closed, with its code and reason."""

    _client_close: CloseConnection | None = None

    async def handle(self, event: Event) -> None:
        """Take an event of the connection."""
        if isinstance(event, StreamClosed):
            await self._disconnected()
        elif isinstance(event, (Body, Data)) and self.handshake.accepted:
            try:
                await super().handle(event)
            except LocalProtocolError:
                # The client sends on after it has closed.
                await self.send(StreamClosed(self.stream_id))
        else:
            await super().handle(event)

    async def _put(self, event: ASGIReceiveEvent) -> None:
        if self.app_put is not None:  # else the handshake was refused
            await self.app_put(event)

    async def _disconnected(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._client_close is not None:
            code, reason = self._client_close.code, self._client_close.reason or ""
        elif self.state in {ASGIWebsocketState.HTTPCLOSED, ASGIWebsocketState.CLOSED}:
            code, reason = CloseReason.NORMAL_CLOSURE, ""
        else:
            code, reason = CloseReason.ABNORMAL_CLOSURE, ""
        event = {"type": "websocket.disconnect", "code": int(code), "reason": reason}
        await self._put(cast(ASGIReceiveEvent, event))  # Hypercorn's type has no reason

    async def _handle_events(self) -> None:
        for event in self.connection.events():
            if isinstance(event, Message):
                try:
                    self.buffer.extend(event)
                except FrameTooLargeError:
                    await self._send_wsproto_event(CloseConnection(code=CloseReason.MESSAGE_TOO_BIG))
                    return
                if event.message_finished:
                    await self._put(cast(ASGIReceiveEvent, self.buffer.to_message()))
                    self.buffer.clear()
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):
                self._client_close = event
                await self._disconnected()
                self.task_group.spawn(self._close, event)

    async def _close(self, event: CloseConnection) -> None:
        """Close the load balancer's side too (RFC 6455, section 7.1; RFC 8441, section 5).

        In a task of its own: what is still to be sent may wait for the client, which is read meanwhile.
        """
        if self.connection.state is ConnectionState.REMOTE_CLOSING:
            await self._send_wsproto_event(event.response())
        await self.send(EndData(self.stream_id))
        await self.send(StreamClosed(self.stream_id))
