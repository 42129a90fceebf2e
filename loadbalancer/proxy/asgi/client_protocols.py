"""Hypercorn's protocols, HTTP/1.1 and HTTP/2, with what they lack as the front of a proxy.

What differs from Hypercorn's: every answer has a reason phrase; a refusal of its own has the form of all
others; `100 Continue` waits until the body is wanted; no request switches to HTTP/2 (RFC 9113, section
3.1), which clients begin with prior knowledge; and nothing that an HTTP/2 client sends after its request was
answered, or against the rules, ends in a traceback.
"""

from http import HTTPMethod
from typing import cast

import h2.errors
import h2.events
import h2.exceptions
import h11
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol.events import (
    Body,
    Data,
    EndBody,
    InformationalResponse,
    Request,
    Response,
    StreamClosed,
)
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import H2Protocol, StreamBuffer
from hypercorn.protocol.h11 import STREAM_ID, H2ProtocolAssumedError, H11Protocol, H11WSConnection
from hypercorn.protocol.http_stream import ASGIHTTPState
from hypercorn.typing import H11SendableEvent
from hypercorn.utils import filter_pseudo_headers

from loadbalancer.answers import encode, failure
from loadbalancer.proxy.asgi.answer_head import TOKEN, reason_phrase
from loadbalancer.proxy.asgi.client_streams import HttpStream, WebsocketStream
from loadbalancer.proxy.asgi.request_head import VISIBLE
from loadbalancer.proxy.headers import first

_CHUNKED = b"Transfer-Encoding: chunked\r\n"
"""What h11 adds to an answer to HEAD that has no length: an answer without a body has no framing."""

_HTTP_2_PREFACE = b"PRI * HTTP/2.0\r\n\r\n"


class Broken(Closed):
    """The connection is to end in such a way that the client cannot take its answer for whole."""


class Http1Protocol(H11Protocol):
    """HTTP/1.1 and HTTP/1.0 with one client."""

    async def stream_send(self, event: StreamEvent) -> None:
        """Send what a stream has to say."""
        if isinstance(event, InformationalResponse):
            if self.connection.they_are_waiting_for_100_continue:
                await self._send_head(h11.InformationalResponse, 100, [])
        elif isinstance(event, Response):
            headers = list(event.headers)
            if (
                self.keep_alive_requests >= self.config.keep_alive_max_requests
                # RFC 9110, section 10.1.1: the body is not wanted, and may come nevertheless.
                or self.connection.they_are_waiting_for_100_continue
            ):
                headers.append((b"connection", b"close"))
            kind = h11.Response if event.status_code >= 200 else h11.InformationalResponse
            reason = self.stream.reason if isinstance(self.stream, HttpStream) else None
            await self._send_head(kind, event.status_code, headers, reason)
        else:
            if isinstance(event, StreamClosed) and self._ends_with_the_connection():
                await self.send(Broken())
            await super().stream_send(event)

    def _ends_with_the_connection(self) -> bool:
        """Whether an answer is under way whose end is that of the connection (RFC 9112, section 6.3)."""
        return (
            self.connection.our_state is h11.SEND_BODY
            and isinstance(self.stream, HttpStream)
            and self.stream.scope["http_version"] == "1.0"
            and first(self.stream.response["headers"], b"content-length") is None
        )

    async def _send_head(
        self,
        kind: type[h11.Response | h11.InformationalResponse],
        status: int,
        headers: list[tuple[bytes, bytes]],
        reason: str | None = None,
    ) -> None:
        phrase = reason_phrase(status, reason)
        await self._send_h11_event(kind(status_code=status, headers=headers, reason=phrase))

    async def _send_error_response(self, status_code: int) -> None:
        """Refuse what is no request."""
        refusal = failure(status_code, _REFUSALS.get(status_code, "this is no HTTP request"))
        await self._send_head(h11.Response, status_code, [*encode(refusal), (b"connection", b"close")])
        await self._send_h11_event(h11.Data(data=refusal.body))
        await self._send_h11_event(h11.EndOfMessage())

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return  # the client has broken the rules meanwhile
        if isinstance(event, h11.Response) and self._has_no_body():
            data = data.replace(_CHUNKED, b"")
        await self.send(RawData(data=data))

    def _has_no_body(self) -> bool:
        return isinstance(self.stream, HttpStream) and self.stream.scope["method"] == HTTPMethod.HEAD

    async def _handle_events(self) -> None:
        # After a request with `Connection: close` nothing of what comes is read (RFC 9112, section 9.6).
        while self.connection.their_state is not h11.MUST_CLOSE:
            try:
                event = self.connection.next_event()
            except h11.RemoteProtocolError as error:
                if self.connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                    await self._send_error_response(error.error_status_hint)
                await self.send(Closed())
                return
            if isinstance(event, h11.Request):
                await self.send(Updated(idle=False))
                await self._check_protocol(event)
                await self._create_stream(event)
            elif event is h11.PAUSED:
                await self.can_read.clear()
                await self.can_read.wait()
            elif isinstance(event, h11.ConnectionClosed) or event is h11.NEED_DATA or self.stream is None:
                return
            elif isinstance(event, h11.Data):
                await self.stream.handle(Body(STREAM_ID, data=bytes(event.data)))
            elif isinstance(event, h11.EndOfMessage):
                await self.stream.handle(EndBody(STREAM_ID))
            elif isinstance(event, Data):  # of a WebSocket
                await self.stream.handle(event)

    async def _check_protocol(self, event: h11.Request) -> None:
        if event.method == b"PRI" and event.target == b"*" and event.http_version == b"2.0":
            raise H2ProtocolAssumedError(_HTTP_2_PREFACE + self.connection.trailing_data[0])

    async def _create_stream(self, request: h11.Request) -> None:
        kind: type[HttpStream | WebsocketStream] = HttpStream
        if _asks_for_websocket(request):
            kind = WebsocketStream
        self.stream = kind(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        if kind is WebsocketStream:
            self.connection = H11WSConnection(cast(h11.Connection, self.connection))
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii"),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1


_REFUSALS = {
    431: "the head of the request is too large",
    501: "the only Transfer-Encoding understood here is chunked",
}


def _asks_for_websocket(request: h11.Request) -> bool:
    """RFC 6455, section 4.2.1."""
    named = {b"upgrade": set[bytes](), b"connection": set[bytes]()}
    for name, value in request.headers:
        if name in named:
            named[name].update(token.strip().lower() for token in value.split(b","))
    return (
        request.method == b"GET" and b"websocket" in named[b"upgrade"] and b"upgrade" in named[b"connection"]
    )


class Http2Protocol(H2Protocol):
    """HTTP/2 with one client."""

    async def stream_send(self, event: StreamEvent) -> None:
        """Send what a stream has to say."""
        if isinstance(event, StreamClosed):
            stream = self.streams.get(event.stream_id)
            if isinstance(stream, HttpStream) and stream.state is not ASGIHTTPState.CLOSED:
                await self._reset(event.stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
        await super().stream_send(event)

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if isinstance(event, h2.events.DataReceived) and event.stream_id not in self.streams:
                # The rest of a request that has been answered.
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            else:
                await super()._handle_events([event])
        await self._flush()

    async def _priority_updated(self, event: h2.events.PriorityUpdated) -> None:
        """Nothing: streams are served alike (RFC 9113, section 5.3.2, has priorities no more)."""

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        pseudo = {name: value for name, value in request.headers if name.startswith(b":")}
        method, target = pseudo[b":method"], pseudo.get(b":path", pseudo.get(b":authority", b""))
        if not TOKEN.fullmatch(method) or not VISIBLE.fullmatch(target):
            # RFC 9113, section 8.1.1: it is malformed.
            await self._reset(request.stream_id, h2.errors.ErrorCodes.PROTOCOL_ERROR)
            return
        kind: type[HttpStream | WebsocketStream] = HttpStream
        if method == b"CONNECT" and pseudo.get(b":protocol") == b"websocket":
            kind = WebsocketStream  # RFC 8441
        stream = self.streams[request.stream_id] = kind(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            request.stream_id,
        )
        self.stream_buffers[request.stream_id] = StreamBuffer(self.context.event_class)
        self.priority.insert_stream(request.stream_id)
        self.priority.block(request.stream_id)
        await stream.handle(
            Request(
                stream_id=request.stream_id,
                headers=filter_pseudo_headers(request.headers),
                http_version="2",
                method=method.decode("ascii"),
                raw_path=target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1

    async def _reset(self, stream_id: int, code: h2.errors.ErrorCodes) -> None:
        try:
            self.connection.reset_stream(stream_id, code)
        except h2.exceptions.ProtocolError:
            return  # the client has reset it
        await self._flush()
