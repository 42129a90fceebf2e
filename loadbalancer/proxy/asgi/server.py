"""Serves an ASGI application on sockets by Hypercorn's protocols, until told to stop."""

import asyncio
from collections.abc import Awaitable, Callable

from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework

from loadbalancer.proxy.asgi.client_connection import ClientConnection
from loadbalancer.proxy.asgi.hypercorn_options import HypercornOptions

TLS_GOODBYE = 2.0
"""Seconds that a client may take to answer the end of TLS."""


async def serve(
    app: ASGIFramework, options: HypercornOptions, until_stopped: Callable[[], Awaitable[object]]
) -> None:
    """Serve until told to stop; then let requests in flight end, for as long as the options say.

    Args:
        app: Answers the requests.
        options: Hypercorn's; what they bind is listened on.
        until_stopped: Returns when no new requests are to be taken.
    """
    context = WorkerContext(None)
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.ensure_future(ClientConnection(app, options, context, reader, writer).run())
        connections.add(serving)
        serving.add_done_callback(connections.discard)
        await serving

    tls = options.create_ssl_context()
    sockets = options.create_sockets()
    servers = [
        await asyncio.start_server(
            connected,
            sock=listener,
            backlog=options.backlog,
            ssl=tls,
            ssl_handshake_timeout=options.ssl_handshake_timeout if tls else None,
            ssl_shutdown_timeout=TLS_GOODBYE if tls else None,
        )
        for listener in (*sockets.secure_sockets, *sockets.insecure_sockets)
    ]
    try:
        await until_stopped()
    finally:
        for server in servers:
            server.close()
        await context.terminated.set()
        await _end(connections, options.graceful_timeout)


async def _end(connections: set[asyncio.Task[None]], patience: float) -> None:
    """Wait for connections to end, and end those that do not."""
    if not connections:
        return
    _, late = await asyncio.wait(connections, timeout=patience)
    for connection in late:
        connection.cancel()
    await asyncio.gather(*late, return_exceptions=True)
