"""The ASGI lane: requests come from Hypercorn and go to a replica through one aiohttp session.

Bodies stream in both directions with back-pressure: nothing is read that cannot be passed on. An
exchange ends early when the client goes away, and the replica is told so by closing its connection.
Reading order: `AsgiLane.__call__`, `_http`, `_exchange`.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import aiohttp
import structlog
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope, Scope, WebsocketScope
from yarl import URL

from loadbalancer.errors import LoadBalancerError, NoReplicaError, answer
from loadbalancer.proxy.accounting import Accounting, Entry
from loadbalancer.proxy.client import Client, ClientGoneError
from loadbalancer.proxy.headers import first, to_client, to_replica
from loadbalancer.proxy.patience import Patience
from loadbalancer.proxy.request import RequestHead, request_id
from loadbalancer.proxy.upstream_http import as_upstream_errors, open_session, text
from loadbalancer.proxy.websocket import Handshake, keep_refusals, refuse, tunnel
from loadbalancer.routing.keys import KeyRule
from loadbalancer.routing.snapshot import SnapshotSource
from loadbalancer.routing.upstream import Upstream
from loadbalancer.settings import Settings

log = structlog.get_logger("loadbalancer.proxy")


class AsgiLane:
    """An ASGI application that passes requests on; used inside `async with`.

    Args:
        source: Publishes the snapshots that requests go by.
        settings: Time-outs and what is hashed.
        accounting: Where requests are counted and logged.
        rng: Source of made-up request ids.
    """

    def __init__(
        self,
        source: SnapshotSource,
        settings: Settings,
        accounting: Accounting,
        rng: random.Random | None = None,
    ) -> None:
        self._source = source
        self._settings = settings
        self._accounting = accounting
        self._rng = rng or random.Random()
        self._rule = KeyRule.parse(settings.hash_on)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = self._settings.connect_timeout
        self._session = open_session(timeout, [keep_refusals])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer one request, or hold one WebSocket."""
        if self._session is None:
            raise RuntimeError("an AsgiLane is used inside `async with`")
        if scope["type"] == "websocket":
            head = self._head(scope)
            with self._accounting.request(head) as entry:
                await self._websocket(self._session, head, list(scope["subprotocols"]), receive, send, entry)
        elif scope["type"] == "http":
            head = self._head(scope)
            client = Client(receive, send)
            with self._accounting.request(head) as entry:
                await _unless_gone(client, self._http(self._session, head, client, entry))

    def _head(self, scope: HTTPScope | WebsocketScope) -> RequestHead:
        headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        return RequestHead(
            # RFC 6455: a WebSocket begins with a GET.
            method=scope["method"] if scope["type"] == "http" else "GET",
            path=scope["raw_path"],
            query=scope["query_string"],
            headers=headers,
            client=scope["client"][0] if scope["client"] else "",
            scheme=scope["scheme"],
            request_id=request_id(headers, self._rng),
        )

    @contextmanager
    def _picked(self, head: RequestHead, entry: Entry) -> Iterator[Upstream]:
        """Choose a replica, and count the request for as long as it takes."""
        upstream = self._source.snapshot.pick(head.key(self._rule))
        if upstream is None:
            raise NoReplicaError("no replica is in rotation: try again in a moment")
        entry.replica = upstream.hostname
        upstream.acquire()
        try:
            yield upstream
        finally:
            upstream.release()

    async def _http(
        self, session: aiohttp.ClientSession, head: RequestHead, client: Client, entry: Entry
    ) -> None:
        """Have a request answered by a replica, or say why that cannot be."""
        try:
            with self._picked(head, entry) as upstream:
                await self._exchange(session, upstream, head, client, entry)
        except LoadBalancerError as error:
            _log_failure(head, error)
            if not client.answering:
                entry.status = error.status
                await client.answer(answer(error))
                entry.complete = True
            # Else the answer stays unfinished: the connection breaks, and the client knows.

    async def _exchange(
        self,
        session: aiohttp.ClientSession,
        upstream: Upstream,
        head: RequestHead,
        client: Client,
        entry: Entry,
    ) -> None:
        """Send the request to a replica and stream its answer back."""
        settings = self._settings
        headers = to_replica(head.headers, client=head.client, scheme=head.scheme, request_id=head.request_id)
        with as_upstream_errors(upstream, settings.connect_timeout, settings.response_timeout):
            async with Patience(settings.response_timeout, settings.idle_timeout) as patience:
                body = await _body(client, patience)
                patience.with_replica()
                response = await session.request(
                    head.method,
                    URL(f"http://{upstream.address}{head.target}", encoded=True),
                    headers=text(headers),
                    data=body,
                    allow_redirects=False,
                )
                if response.status < 500:
                    upstream.answered += 1
                try:
                    await self._send_back(response, client, patience, entry)
                finally:
                    response.close()  # of no effect on a connection that is back in the pool

    async def _websocket(
        self,
        session: aiohttp.ClientSession,
        head: RequestHead,
        subprotocols: Sequence[str],
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        entry: Entry,
    ) -> None:
        """Hold a WebSocket open to a replica, or say why that cannot be."""
        handshake = Handshake(session, self._settings.response_timeout, self._settings.connect_timeout)
        try:
            with self._picked(head, entry) as upstream:
                await tunnel(upstream, handshake, head, subprotocols, receive, send, entry)
        except LoadBalancerError as error:
            _log_failure(head, error)
            await refuse(send, entry, error)

    @staticmethod
    async def _send_back(
        response: aiohttp.ClientResponse, client: Client, patience: Patience, entry: Entry
    ) -> None:
        headers = to_client(response.raw_headers)
        endless = (first(headers, b"content-type") or b"").startswith(b"text/event-stream")
        entry.status = response.status
        patience.with_client()
        await client.begin(response.status, headers)
        patience.with_replica(endless)
        async for chunk in response.content.iter_any():
            patience.with_client()
            await client.write(chunk)
            patience.with_replica(endless)
        patience.with_client()
        await client.end()
        entry.complete = True


async def _unless_gone(client: Client, exchange: Coroutine[Any, Any, None]) -> None:
    """Carry an exchange through, but drop it as soon as the client goes away."""
    work = asyncio.create_task(exchange)
    watch = asyncio.create_task(client.gone())
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        # Both are ours; what is finished already does not mind being cancelled.
        work.cancel()
        watch.cancel()
        await asyncio.gather(work, watch, return_exceptions=True)
    if not work.cancelled() and not isinstance(work.exception(), ClientGoneError):
        work.result()


async def _body(client: Client, patience: Patience) -> AsyncIterator[bytes] | None:
    """The request's body as a stream, or None if it has none."""
    patience.with_client()
    chunk = await client.read()
    if chunk is None:
        return None

    async def chunks(chunk: bytes | None) -> AsyncIterator[bytes]:
        while chunk is not None:
            patience.with_replica()
            yield chunk
            patience.with_client()
            try:
                chunk = await client.read()
            except ClientGoneError:
                patience.client_gone = True
                raise
        patience.with_replica()

    return chunks(chunk)


def _log_failure(head: RequestHead, error: LoadBalancerError) -> None:
    log.warning(
        "request failed",
        reason=str(error),
        method=head.method,
        target=head.target,
        request_id=head.request_id,
    )
