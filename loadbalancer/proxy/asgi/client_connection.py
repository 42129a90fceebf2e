"""A client's connection, served by Hypercorn's protocols until it ends.

A connection ends in such a way that the client can read the last answer (RFC 9112, section 9.6): the load
balancer says that it sends no more, and reads on for a while. If it closed at once, what the client is
still sending would make the system throw the answer away.
"""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from socket import SO_LINGER, SOL_SOCKET
from ssl import SSLError
from typing import Any, cast

import structlog
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import MAX_RECV, TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H2ProtocolAssumedError
from hypercorn.typing import (
    AppWrapper,
    ASGIFramework,
    ASGIReceiveEvent,
    ASGISendEvent,
    ConnectionState,
    Scope,
)
from hypercorn.utils import parse_socket_addr

from loadbalancer.proxy.asgi.client_protocols import Broken, Http1Protocol, Http2Protocol
from loadbalancer.proxy.asgi.client_streams import Inbox

LINGER, LINGER_IN_ALL = 2.0, 30.0
"""Seconds that a connection is read on after its last answer: between two packets, and in all."""

_AT_ONCE = struct.pack("ii", 1, 0)
"""The value of SO_LINGER that makes the system reset a connection when it is closed."""

log = structlog.get_logger("loadbalancer.proxy")


class ClientConnection(TCPServer):
    """Serves one connection when it is awaited.

    Args:
        app: Answers the requests.
        config: Hypercorn's options.
        context: Says when the server stops.
        reader: From the client.
        writer: To the client.
        address: Of the client; empty: the other end's.
    """

    def __init__(
        self,
        app: ASGIFramework,
        config: Config,
        context: WorkerContext,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        address: str = "",
    ) -> None:
        loop = asyncio.get_running_loop()
        # What Hypercorn hands on is called by `_Tasks` alone.
        super().__init__(cast(AppWrapper, app), loop, config, context, {}, reader, writer)
        self._cut_off: asyncio.TimerHandle | None = None
        """Ends the connection; None while it goes on."""
        self._lingers_until = 0.0
        self._address = address

    async def run(self) -> None:
        """Serve the connection until it ends."""
        try:
            async with _Tasks(self.loop) as tasks:
                self._task_group = tasks
                self.protocol = self._make_protocol(tasks)
                await self.protocol.initiate()
                await self.idle_task.restart(tasks, self._idle_timeout)
                await self._read_data()
        except* OSError:
            pass  # the connection has broken
        except* Exception as errors:
            log.error("connection failed", exc_info=errors)
        finally:
            if self._cut_off is not None:
                self._cut_off.cancel()
            await self._close()

    async def protocol_send(self, event: Event) -> None:
        """Do what the protocol wants done with the connection."""
        if isinstance(event, Broken):
            self._break()
        elif isinstance(event, Closed):
            await self._finish()
        else:
            await super().protocol_send(event)

    def _make_protocol(self, tasks: TaskGroup) -> ProtocolWrapper:
        socket = self.writer.get_extra_info("socket")
        tls = self.writer.get_extra_info("ssl_object")
        return _Protocol(
            self.app,
            self.config,
            self.context,
            tasks,
            ConnectionState({}),
            tls is not None,
            (self._address, 0) if self._address else parse_socket_addr(socket.family, socket.getpeername()),
            parse_socket_addr(socket.family, socket.getsockname()),
            self.protocol_send,
            tls.selected_alpn_protocol() if tls is not None else None,
        )

    async def _read_data(self) -> None:
        while not self.reader.at_eof():
            try:
                data = await self.reader.read(MAX_RECV)
            except (OSError, SSLError):
                break
            if self._cut_off is None:
                await self.protocol.handle(RawData(data))
            else:
                self._linger()
        await self.protocol.handle(Closed())

    async def _finish(self) -> None:
        if self._cut_off is not None or self.writer.is_closing():
            return
        if self.reader.at_eof() or not self.writer.can_write_eof():
            await self._close()
            return
        self.writer.write_eof()
        self._lingers_until = self.loop.time() + LINGER_IN_ALL
        self._linger()

    def _break(self) -> None:
        """End the connection by a reset, rather than in good order."""
        self.writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, _AT_ONCE)
        self.writer.transport.abort()

    def _linger(self) -> None:
        if self._cut_off is not None:
            self._cut_off.cancel()
        when = min(self.loop.time() + LINGER, self._lingers_until)
        self._cut_off = self.loop.call_at(when, self.writer.transport.abort)


class _Protocol(ProtocolWrapper):
    """Begins with the protocol that was agreed on, and goes over to HTTP/2 with prior knowledge."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.protocol = self._make(Http2Protocol if args[-1] == "h2" else Http1Protocol)

    async def handle(self, event: Event) -> None:
        """Take an event of the connection."""
        try:
            await self.protocol.handle(event)
        except H2ProtocolAssumedError as error:
            self.protocol = self._make(Http2Protocol)
            await self.protocol.initiate()
            await self.protocol.handle(RawData(data=error.data))

    def _make(self, kind: type[Http1Protocol | Http2Protocol]) -> Http1Protocol | Http2Protocol:
        return kind(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.state,
            self.ssl,
            self.client,
            self.server,
            self.send,
        )


class _Tasks(TaskGroup):
    """The tasks of one connection: one for each request, and Hypercorn's own."""

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """Have the application serve a request."""
        inbox = Inbox(config.max_app_queue_size)
        self.spawn(_run, cast(ASGIFramework, app), scope, inbox, send)
        return inbox.put


async def _run(
    app: ASGIFramework, scope: Scope, inbox: Inbox, send: Callable[[ASGISendEvent | None], Awaitable[None]]
) -> None:
    try:
        await app(scope, inbox.get, send)
    except Exception:
        log.exception("request failed by a fault of the load balancer")
    finally:
        await send(None)
