"""HTTP/2 beside the fast lane: connections that chose it by ALPN are served by Hypercorn and the ASGI lane.

The fast lane accepts every connection and does the TLS; those that speak HTTP/2 (RFC 9113) it hands over
here as they are.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework

from loadbalancer.proxy.accounting import Accounting
from loadbalancer.proxy.asgi.client_connection import ClientConnection
from loadbalancer.proxy.asgi.dispatcher import Dispatcher
from loadbalancer.proxy.asgi.hypercorn_options import HypercornOptions
from loadbalancer.proxy.asgi.lane import AsgiLane
from loadbalancer.proxy.router import Router
from loadbalancer.settings import Settings

READ_AHEAD = 64 * 1024
"""Bytes that are read from a client before Hypercorn wants them."""


class Http2:
    """Serves connections that are handed over.

    Args:
        app: Answers the requests.
        options: Hypercorn's.
    """

    def __init__(self, app: ASGIFramework, options: HypercornOptions) -> None:
        self._app = app
        self._options = options
        self._context = WorkerContext(None)

    async def serve(self, transport: asyncio.Transport, address: str) -> None:
        """Serve a connection until it ends.

        Args:
            transport: The connection, from which nothing has been read.
            address: Of the client, which a proxy may have told.
        """
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(READ_AHEAD, loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        protocol.connection_made(transport)
        transport.set_protocol(protocol)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        await ClientConnection(self._app, self._options, self._context, reader, writer, address)

    async def drain(self) -> None:
        """Take no more requests: connections end when nothing is in flight on them."""
        await self._context.terminated.set()


@asynccontextmanager
async def open_http2(
    router: Router, settings: Settings, accounting: Accounting, admin: ASGIFramework
) -> AsyncIterator[Http2]:
    """Make what the fast lane hands its HTTP/2 connections over to.

    Args:
        router: Finds replicas for requests; the fast lane's own.
        settings: The options.
        accounting: Where requests are counted and logged.
        admin: Answers for the admin paths.
    """
    async with AsgiLane(router, settings, accounting) as lane:
        yield Http2(Dispatcher(admin, lane), HypercornOptions(settings))
