"""Carries one request to a replica, and to another if that fails: the shell around `Exchange`.

It finds replicas and connections, writes what the exchange says, and counts. It has no task of its own while
bytes flow; only to wait for a replica or a connection it takes one.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from loadbalancer.answers import answer
from loadbalancer.errors import (
    LoadBalancerError,
    UpstreamError,
    UpstreamStaleError,
    UpstreamTimeoutError,
)
from loadbalancer.proxy.fast.client_side import Received
from loadbalancer.proxy.fast.exchange import Exchange, ExchangeState
from loadbalancer.proxy.fast.pool import Pool
from loadbalancer.proxy.fast.replica_side import Answered
from loadbalancer.proxy.fast.upstream import UpstreamConnection
from loadbalancer.proxy.request import log_failure
from loadbalancer.proxy.retry import IDEMPOTENT, may_repeat
from loadbalancer.proxy.router import Route
from loadbalancer.routing.upstream import Upstream

if TYPE_CHECKING:
    from loadbalancer.proxy.fast.client_shell import ClientShell

log = structlog.get_logger("loadbalancer.proxy")

T = TypeVar("T")


class Carrier:
    """Carries one request.

    Args:
        client: The connection that it came by.
        exchange: The request and its answer.
    """

    __slots__ = (
        "_client",
        "_connection",
        "_lane",
        "_replica_ended",
        "_route",
        "_task",
        "_upstream",
        "exchange",
    )

    def __init__(self, client: "ClientShell", exchange: Exchange) -> None:
        self.exchange = exchange
        self._client = client
        self._lane = client.lane
        self._connection: UpstreamConnection | None = None
        self._upstream: Upstream | None = None
        self._route: Route | None = None
        self._task: asyncio.Task[None] | None = None
        self._replica_ended = False
        """Whether the replica has closed its half of a tunnel."""

    def start(self) -> None:
        """Find a replica, and send it what has come of the request."""
        lane = self._lane
        if self.exchange.request.admin:
            self._use(lane.admin)
            return
        lane.accounting.begin()
        self.go_on(lane.router.first(self._key()))

    def go_on(self, upstream: Upstream | None) -> None:
        """Carry a request that is counted already to a replica; None: there is none yet."""
        if upstream is None:
            self._spawn(self._wait(None))
        else:
            self.attempt(upstream)

    def take_over(self, upstream: Upstream, connection: UpstreamConnection) -> None:
        """Carry a usual request that was sent already.

        Args:
            upstream: The replica that has it; the request is counted there.
            connection: The connection on which it was sent.
        """
        self.exchange.connected()
        self.exchange.replica = upstream.hostname
        self._upstream = upstream
        self._connection = connection

    # -- finding a replica -----------------------------------------------------------------------------

    def _key(self) -> str:
        return self.exchange.request.describe().key(self._lane.rule)

    def _way(self) -> Route:
        if self._route is None:
            self._route = Route(self._key())
        return self._route

    def attempt(self, upstream: Upstream) -> None:
        """Send the request to a replica."""
        upstream.acquire()
        self._upstream = upstream
        self.exchange.replica = upstream.hostname
        self._use(self._lane.pool(upstream))

    def _use(self, pool: Pool) -> None:
        fresh = self._route is not None and self._route.fresh
        connection = None if fresh else pool.take(sure=not self.may_meet_a_stale_connection)
        if connection is not None:
            self._send_by(connection)
        else:
            self._spawn(self._connect(pool))

    @property
    def may_meet_a_stale_connection(self) -> bool:
        """Whether the request can be sent again when a kept connection turns out to have ended."""
        exchange = self.exchange
        return exchange.request.method in IDEMPOTENT and exchange.request_whole and exchange.repeatable

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = self._lane.spawn(work, self.defect)
        self._client.set_deadline()

    async def _connect(self, pool: Pool) -> None:
        try:
            connection = await pool.obtain()
        except UpstreamError as error:
            self._task = None
            if self.exchange.state is ExchangeState.SEEKING:
                self._failed(error)
            return
        except LoadBalancerError as error:
            self._task = None
            if self.exchange.state is ExchangeState.SEEKING:
                self._fail(error)
            return
        self._task = None
        if self.exchange.state is not ExchangeState.SEEKING:
            pool.give_back(connection)
        elif connection.transport.is_closing():
            self._failed(UpstreamStaleError(f"{pool.name} closed a connection as it was used again"))
        else:
            self._send_by(connection)

    async def _wait(self, failure: UpstreamError | None) -> None:
        try:
            upstream = await self._lane.router.wait(self._way(), failure)
        except LoadBalancerError as error:
            self._task = None
            self._fail(error)
        else:
            self._task = None
            self.attempt(upstream)

    # -- the request -----------------------------------------------------------------------------------

    def _send_by(self, connection: UpstreamConnection) -> None:
        exchange = self.exchange
        self._connection = connection
        connection.ask(self, exchange.request.method, streams=not exchange.request_whole)
        connection.hold(self._client.write_held)
        connection.transport.write(exchange.connected())
        self._client.set_deadline()
        self._client.regulate()

    def request_received(self, received: Received) -> None:
        """More of the request has come."""
        exchange = self.exchange
        data = exchange.request_part(received.body) if received.body else b""
        if received.whole:
            data += exchange.request_end(received.trailers)
        if data and self._connection is not None:
            self._connection.transport.write(data)
        if self._connection is not None:
            self._client.set_deadline()

    @property
    def must_wait(self) -> bool:
        """Whether nothing more of the request can be passed on just now."""
        if self.exchange.state is ExchangeState.SEEKING:
            return not self.exchange.request_whole
        return self._connection is not None and self._connection.write_held

    @property
    def replica_is_due(self) -> bool:
        """Whether a replica has to do something next, and not the client."""
        return self._connection is not None and (self.exchange.request_whole or self._connection.write_held)

    # -- the answer ------------------------------------------------------------------------------------

    def replica_sent(self, answered: Answered) -> None:
        """The replica has sent something."""
        exchange = self.exchange
        if exchange.switched:
            self._client.write(answered.body)
            self._client.tunnel_alive()
            return
        data = b"".join([exchange.informational(head) for head in answered.informational])
        if answered.head is not None:
            if self._upstream is not None:
                self._upstream.record_answer(answered.head.status)
            try:
                data += exchange.answer_head(answered.head, last=self._client.last)
            except UpstreamError as error:
                answered.error = error
        if answered.error is not None:
            self._client.write(data)
            self._drop_connection()
            self._failed(answered.error)
            return
        if exchange.switched:
            self._switch(data, answered.body)
            return
        if answered.body:
            data += exchange.answer_part(answered.body)
        if answered.whole:
            self._finish(data + exchange.answer_end(answered.trailers))
            return
        self._client.write(data)
        if exchange.state is ExchangeState.COLLECTING:
            self._client.collect()
        self._client.set_deadline()

    def release_collected(self) -> None:
        """The rest of a short answer takes its time: pass on what there is."""
        self._client.write(self.exchange.collected())

    def _finish(self, data: bytes) -> None:
        """The answer is whole."""
        connection, self._connection = self._connection, None
        exchange = self.exchange
        if connection is not None:
            connection.finish(request_whole=exchange.request_whole)
        self._client.write(data)
        self._end()
        self._client.finished(keeps=exchange.keeps)

    # -- another protocol ------------------------------------------------------------------------------

    def _switch(self, head: bytes, data: bytes) -> None:
        """Pass everything both ways from now on, beginning with what has come early."""
        self._client.write(head + data)
        early = self._client.switch()
        if early and self._connection is not None:
            self._connection.transport.write(early)
        if self._client.half_closed:
            self.client_has_no_more()

    def tunnel_received(self, data: bytes) -> None:
        """The client has sent something through the tunnel."""
        if self._connection is not None:
            self._connection.transport.write(data)

    def client_has_no_more(self) -> None:
        """The client has closed its half of the tunnel."""
        if self._connection is not None:
            self._connection.close_half()
        if self._replica_ended:
            self._close_tunnel()

    def replica_has_no_more(self) -> None:
        """The replica has closed its half of the tunnel."""
        self._replica_ended = True
        self._client.close_half()
        if self._client.half_closed:
            self._close_tunnel()

    def _close_tunnel(self) -> None:
        connection = self._connection
        if connection is not None:
            connection.finish(request_whole=True)
        self.tunnel_ended(None)

    def tunnel_ended(self, error: Exception | None) -> None:
        """The replica's connection has ended, and the client's with it."""
        self._connection = None
        self.exchange.complete = error is None
        self._end()
        self._client.tunnel_ended(error)

    # -- back-pressure ---------------------------------------------------------------------------------

    def client_held(self) -> None:
        """The client takes no more just now, or does again."""
        if self._connection is not None:
            self._connection.hold(self._client.write_held)

    def replica_held(self) -> None:
        """The replica takes no more just now, or does again."""
        self._client.regulate()
        self._client.set_deadline()

    # -- what goes wrong -------------------------------------------------------------------------------

    def _failed(self, error: UpstreamError) -> None:
        """The replica has failed: try another, or say so."""
        self._connection = None
        exchange = self.exchange
        upstream, self._upstream = self._upstream, None
        if upstream is None:
            self._fail(error)
            return
        repeatable = not exchange.answering and may_repeat(
            exchange.request.method, error, body_at_hand=exchange.repeatable
        )
        route = self._way()
        goes_on = self._lane.router.may_go_on(route, upstream, error, repeatable)
        upstream.release()
        if not goes_on:
            self._fail(error)
            return
        if exchange.state is not ExchangeState.SEEKING:
            exchange.disconnected()
        another = self._lane.router.pick(route)
        if another is None:
            self._spawn(self._wait(error))
        else:
            self.attempt(another)
        self._client.regulate()

    def out_of_patience(self) -> None:
        """The replica has been silent for too long."""
        if self._connection is not None:
            limit = self._lane.limits.response_timeout
            error = UpstreamTimeoutError(f"{self._connection.name} did not answer within {limit:g} s")
            self._drop_connection()
            self._failed(error)

    def abandon(self, status: int | None = None) -> None:
        """The client has gone, or its request makes no sense: nobody waits for the answer.

        Args:
            status: Of the answer that the client gets all the same.
        """
        if self.exchange.state is ExchangeState.OVER:
            return
        if status is not None:
            self.exchange.status = status
        if self._task is not None:
            self._task.cancel()
        self._drop_connection()
        self._end()

    def _fail(self, error: LoadBalancerError) -> None:
        log_failure(self.exchange.request.describe(), error)
        self._answer_with(error)

    def _answer_with(self, error: BaseException) -> None:
        exchange, client = self.exchange, self._client
        if exchange.answering:
            # The answer stays unfinished: the connection breaks, and the client knows.
            self._end()
            client.abort(reset=exchange.ends_with_connection)
            return
        last = client.last or not exchange.request_whole
        client.write(exchange.own_answer(answer(error), last=last))
        exchange.complete = True
        self._end()
        client.finished(keeps=exchange.keeps)

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.drop()

    def guard(self, step: Callable[[T], None], argument: T) -> None:
        """Run a step; what it does not foresee is a defect of ours, and no replica's fault."""
        try:
            step(argument)
        except Exception as error:
            self.defect(error)

    def defect(self, error: BaseException) -> None:
        """Answer 500: something went wrong that nobody foresaw, which is no replica's fault."""
        log.error("defect", reason=repr(error), exc_info=error)
        if self.exchange.state is ExchangeState.OVER:
            self._client.abort()
            return
        self._drop_connection()
        self._answer_with(error)

    def _end(self) -> None:
        exchange = self.exchange
        exchange.become(ExchangeState.OVER)
        if self._upstream is not None:
            self._upstream.release()
            self._upstream = None
        if not exchange.request.admin:
            lane = self._lane
            lane.accounting.end(exchange.request.describe, exchange, lane.clock() - exchange.began)
