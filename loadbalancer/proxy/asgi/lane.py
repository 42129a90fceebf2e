"""The ASGI lane: requests come from Hypercorn and go to a replica through aiohttp's pooled connections.

Bodies stream in both directions with back-pressure: nothing is read that cannot be passed on. An
exchange ends early when the client goes away, and the replica is told so by closing its connection.
Reading order: `AsgiLane.__call__`, `_http`, `_exchange`.
"""

import asyncio
import random
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiohttp import ClientResponse
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope, Scope, WebsocketScope
from yarl import URL

from loadbalancer.answers import answer, encode
from loadbalancer.errors import LoadBalancerError, UpstreamError
from loadbalancer.proxy.accounting import Accounting, Entry
from loadbalancer.proxy.asgi.answer_head import answer_headers, is_event_stream
from loadbalancer.proxy.asgi.attempts import carry
from loadbalancer.proxy.asgi.body import RequestBody
from loadbalancer.proxy.asgi.client import Client, ClientGoneError
from loadbalancer.proxy.asgi.patience import Patience
from loadbalancer.proxy.asgi.request_head import body_length, expects_continue
from loadbalancer.proxy.asgi.upstream_http import Kind, Sessions, as_upstream_errors, text
from loadbalancer.proxy.asgi.websocket import Handshake, refuse, tunnel
from loadbalancer.proxy.forwarding import TrustedProxies
from loadbalancer.proxy.headers import to_replica
from loadbalancer.proxy.request import RequestHead, log_failure, request_id
from loadbalancer.proxy.retry import IDEMPOTENT, may_repeat
from loadbalancer.proxy.router import Router
from loadbalancer.routing.keys import KeyRule
from loadbalancer.routing.upstream import Upstream
from loadbalancer.settings import Settings


@dataclass(frozen=True, slots=True)
class _Request:
    """A request and its client.

    Args:
        head: As it came.
        client: Sends it, and waits for the answer.
        length: Bytes of its body; None if their number is not known.
        expects: Whether the client holds the body back until it is asked for.
    """

    head: RequestHead
    client: Client
    length: int | None
    expects: bool


class AsgiLane:
    """An ASGI application that passes requests on; used inside `async with`.

    Args:
        router: Finds replicas for requests.
        settings: Time-outs, what is hashed, and how long requests may wait for a replica.
        accounting: Where requests are counted and logged.
        rng: Source of made-up request ids.
    """

    def __init__(
        self,
        router: Router,
        settings: Settings,
        accounting: Accounting,
        rng: random.Random | None = None,
    ) -> None:
        self._settings = settings
        self._accounting = accounting
        self._rng = rng or random.Random()
        self._rule = KeyRule.parse(settings.hash_on)
        self._proxies = TrustedProxies(settings.trusted_proxies)
        self._router = router
        self._sessions: dict[Upstream, Sessions] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for upstream in tuple(self._sessions):
            self._let_go(upstream)
        await asyncio.gather(*self._closing)

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer one request, or hold one WebSocket."""
        if scope["type"] == "websocket":
            head = self._head(scope)
            with self._accounting.request(head) as entry:
                await self._websocket(head, list(scope["subprotocols"]), receive, send, entry)
        elif scope["type"] == "http":
            head = self._head(scope)
            request = _Request(head, Client(receive, send), body_length(scope), expects_continue(scope))
            with self._accounting.request(head) as entry:
                await _unless_gone(request.client, self._http(request, entry))

    def _sessions_to(self, upstream: Upstream) -> Sessions:
        """The connections to a replica: a pool for each, which goes when the replica goes."""
        sessions = self._sessions.get(upstream)
        if sessions is None:
            sessions = self._sessions[upstream] = Sessions(upstream, self._settings.connect_timeout)
            upstream.on_retired.append(lambda: self._let_go(upstream))
        return sessions

    def _let_go(self, upstream: Upstream) -> None:
        sessions = self._sessions.pop(upstream, None)
        if sessions is not None:
            task = asyncio.create_task(sessions.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _head(self, scope: HTTPScope | WebsocketScope) -> RequestHead:
        # An empty Host is how Hypercorn shows that an HTTP/2 request has none; the HTTP library adds one.
        headers = [(bytes(n), bytes(v)) for n, v in scope["headers"] if v or n != b"host"]
        peer = scope["client"][0] if scope["client"] else ""
        identity = self._proxies.identify(headers, peer=peer, scheme=scope["scheme"])
        return RequestHead(
            # RFC 6455: a WebSocket begins with a GET.
            method=scope["method"] if scope["type"] == "http" else "GET",
            path=scope["raw_path"],
            query=scope["query_string"],
            headers=headers,
            client=identity.client,
            scheme=identity.scheme,
            request_id=request_id(headers, self._rng),
            via=identity.via,
        )

    async def _http(self, request: "_Request", entry: Entry) -> None:
        """Have a request answered by a replica, or say why that cannot be."""
        client, head = request.client, request.head
        try:
            body = RequestBody(client, self._settings.max_body, request.length)
            await self._carry(request, body, entry)
        except LoadBalancerError as error:
            log_failure(head, error)
            if not client.answering:
                entry.status = error.status
                await client.answer(answer(error))
                entry.complete = True
            # Else the answer stays unfinished: the connection breaks, and the client knows.

    async def _carry(self, request: "_Request", body: RequestBody, entry: Entry) -> None:
        head = request.head

        async def attempt(upstream: Upstream, fresh: bool) -> None:
            entry.replica = upstream.hostname
            try:
                await self._exchange(upstream, fresh, request, body, entry)
            except UpstreamError:
                if body.too_large is None:
                    raise
                raise body.too_large from None  # which is not the replica's fault

        def repeatable(error: UpstreamError) -> bool:
            return not request.client.answering and may_repeat(head.method, error, body_at_hand=body.at_hand)

        await carry(self._router, head.key(self._rule), attempt, repeatable)

    async def _exchange(
        self, upstream: Upstream, fresh: bool, request: "_Request", body: RequestBody, entry: Entry
    ) -> None:
        """Send the request to a replica and stream its answer back."""
        settings, head = self._settings, request.head
        headers = to_replica(
            head.headers, client=head.client, scheme=head.scheme, request_id=head.request_id, via=head.via
        )
        with as_upstream_errors(upstream, settings.connect_timeout, settings.response_timeout):
            async with Patience(
                settings.response_timeout, settings.idle_timeout, settings.tunnel_idle_timeout
            ) as patience:
                data = body.when_asked_for(patience) if request.expects else await body.stream(patience)
                # A body that is held back is asked for after a while, whatever the replica says.
                patience.with_replica(endless=request.expects)
                repeatable = head.method in IDEMPOTENT and body.whole
                kind = Kind.NEW if fresh else Kind.KEPT if repeatable else Kind.RECENT
                response = (
                    await self._sessions_to(upstream)
                    .get(kind)
                    .request(
                        head.method,
                        _url(upstream, head),
                        headers=text(headers),
                        data=data,
                        expect100=request.expects,
                        allow_redirects=False,
                    )
                )
                upstream.record_answer(response.status)
                try:
                    await self._send_back(upstream, response, request.client, patience, entry)
                finally:
                    response.close()  # of no effect on a connection that is back in the pool

    async def _websocket(
        self,
        head: RequestHead,
        subprotocols: Sequence[str],
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        entry: Entry,
    ) -> None:
        """Hold a WebSocket open to a replica, or say why that cannot be."""
        settings = self._settings

        async def attempt(upstream: Upstream, fresh: bool) -> None:
            entry.replica = upstream.hostname
            session = self._sessions_to(upstream).get(Kind.NEW if fresh else Kind.KEPT)
            handshake = Handshake(session, settings.response_timeout, settings.connect_timeout)
            await tunnel(upstream, handshake, head, subprotocols, receive, send, entry)

        def repeatable(error: UpstreamError) -> bool:
            return may_repeat("GET", error, body_at_hand=True)

        await receive()  # websocket.connect
        try:
            await carry(self._router, head.key(self._rule), attempt, repeatable)
        except LoadBalancerError as error:
            log_failure(head, error)
            ours = answer(error)
            entry.status = ours.status
            await refuse(send, ours.status, encode(ours), ours.body)
            entry.complete = True

    @staticmethod
    async def _send_back(
        upstream: Upstream, response: ClientResponse, client: Client, patience: Patience, entry: Entry
    ) -> None:
        headers = answer_headers(upstream.hostname, response.status, response.raw_headers)
        endless = is_event_stream(headers)
        entry.status = response.status
        patience.with_client()
        await client.begin(response.status, headers, response.reason)
        patience.with_replica(endless)
        async for chunk in response.content.iter_any():
            patience.with_client()
            await client.write(chunk)
            patience.with_replica(endless)
        patience.with_client()
        await client.end()
        entry.complete = True


def _url(upstream: Upstream, head: RequestHead) -> URL:
    if head.path == b"*":
        return URL.build(scheme="http", authority=upstream.address, path="*", encoded=True)
    return URL(f"http://{upstream.address}{head.target}", encoded=True)


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
