"""One request and its answer, from the head that came in to the last byte that went out.

An exchange joins a client's connection with a replica's, and changes the replica when it has to. It has
no task of its own: it is driven by what arrives on either side.
"""

import asyncio
from typing import TYPE_CHECKING

from loadbalancer.answers import answer
from loadbalancer.errors import (
    LoadBalancerError,
    NoReplicaError,
    UpstreamError,
    UpstreamStaleError,
    UpstreamTimeoutError,
)
from loadbalancer.proxy.accounting import CLIENT_GONE
from loadbalancer.proxy.fast.answering import AnswerHead, Framing, KnownAnswer, answer_head, own_answer
from loadbalancer.proxy.fast.incoming import Incoming
from loadbalancer.proxy.fast.pool import Pool
from loadbalancer.proxy.fast.tunnel import Tunnel
from loadbalancer.proxy.fast.upstream import UpstreamConnection
from loadbalancer.proxy.headers import Header, first
from loadbalancer.proxy.request import RequestHead, log_failure
from loadbalancer.proxy.retry import may_repeat
from loadbalancer.proxy.router import Route
from loadbalancer.routing.upstream import Upstream

if TYPE_CHECKING:
    from loadbalancer.proxy.fast.client import ClientConnection

REPLAYED = 64 * 1024
"""Bytes of a request's body that are kept, so that it can be sent again."""


class Exchange:
    """One request and its answer.

    Args:
        client: The connection that it came by.
        incoming: The request.
    """

    # What an exchange begins with; a usual one changes few of these, and making it costs as little.
    up: UpstreamConnection | None = None
    upstream: Upstream | None = None
    replica = ""
    status = CLIENT_GONE
    complete = False
    """With the two before it, what the books want to know (see `accounting.Outcome`)."""
    answering = False
    over = False
    endless = False
    keep_upstream = False
    reads_until_close = False
    request_sent = False
    answer_head: AnswerHead | None = None
    _route: Route | None = None
    _task: "asyncio.Task[None] | None" = None
    _framing = Framing.NONE
    _trailers: list[Header] | None = None
    _early: list[bytes] | None = None
    _outgoing: list[bytes] | None = None
    """What of the body has come before there was anybody to send it to."""
    _replay: list[bytes] | None = None
    """What of the body has been sent."""
    _replay_size = 0
    _repeatable = True
    """Whether all that has been sent can be sent again."""

    def __init__(self, client: "ClientConnection", incoming: Incoming) -> None:
        lane = client.lane
        self.client = client
        self.incoming = incoming
        self._began = lane.clock()
        self._lane = lane
        self._id = incoming.given_id or lane.ids.make()

    @property
    def method(self) -> str:
        """The request's method."""
        return self.incoming.method

    def start(self) -> None:
        """Find a replica and send the request."""
        lane = self._lane
        if self.incoming.own:
            self._use(lane.control)
            return
        lane.accounting.begin()
        upstream = lane.router.first(self._key())
        if upstream is None:
            self._wait_for_replica(None)
        else:
            self._go(upstream)

    # -- finding a replica -----------------------------------------------------------------------------

    def _key(self) -> str:
        rule = self._lane.rule
        return self._id if rule.source == "request-id" else self.request_head().key(rule)

    def _way(self) -> Route:
        """Its way so far, which few need: most requests succeed at once."""
        if self._route is None:
            self._route = Route(self._key())
        return self._route

    def _go(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.replica = upstream.hostname
        upstream.in_flight += 1
        self._use(self._lane.pool(upstream))

    def _use(self, pool: Pool) -> None:
        connection = pool.take()
        if connection is not None:
            self._send_by(connection)
        else:
            self._task = self._lane.spawn(self._connect(pool))

    async def _connect(self, pool: Pool) -> None:
        try:
            connection = await pool.obtain()
        except LoadBalancerError as error:
            self._task = None
            if self.over:
                return
            if isinstance(error, UpstreamError):
                self.broke(error)
            else:
                self._fail(error)
            return
        self._task = None
        if self.over:
            pool.give_back(connection)
        elif connection.transport.is_closing():
            self.broke(UpstreamStaleError(f"{pool.name} closed a connection as it was used again"))
        else:
            self._send_by(connection)

    def _wait_for_replica(self, failure: UpstreamError | None) -> None:
        self._task = self._lane.spawn(self._waiting(failure))

    async def _waiting(self, failure: UpstreamError | None) -> None:
        try:
            upstream = await self._lane.router.wait(self._way(), failure)
        except (NoReplicaError, UpstreamError) as error:
            self._task = None
            self._fail(error)
        else:
            self._task = None
            self._go(upstream)

    # -- the request -----------------------------------------------------------------------------------

    def request_head(self) -> RequestHead:
        """The request, as keys and logs want it."""
        incoming, client = self.incoming, self.client
        return RequestHead.from_target(
            incoming.method, incoming.target, incoming.headers, client.address, client.scheme, self._id
        )

    def _head(self) -> bytes:
        incoming, address = self.incoming, self.client.address_bytes
        if incoming.given_id:
            return b"%bx-forwarded-for: %b%b\r\n\r\n" % (incoming.outgoing, incoming.hops, address)
        return b"%bx-forwarded-for: %b%b\r\nx-request-id: %b\r\n\r\n" % (
            incoming.outgoing,
            incoming.hops,
            address,
            self._id.encode(),
        )

    def _send_by(self, connection: UpstreamConnection) -> None:
        self.up = connection
        connection.exchange = self
        if self.client.write_held:
            connection.hold(True)
        if self._outgoing or self._replay:
            outgoing, self._outgoing = self._outgoing or (), None
            connection.transport.write(b"".join([self._head(), *(self._replay or ()), *outgoing]))
            for part in outgoing:
                self._keep_for_replay(part)
        else:
            connection.transport.write(self._head())
        if self.incoming.expects_continue and not self.incoming.complete:
            self.client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.incoming.expects_continue = False
        self.request_sent = self.incoming.complete
        self.client.wait_for_replica()
        if not self.request_sent:
            self.client.body_may_come()

    def on_request_body(self, data: bytes) -> None:
        """A part of the request's body has come."""
        if self.incoming.chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._pass_on(data)

    def on_request_end(self) -> None:
        """All of the request has come."""
        if self.incoming.chunked:
            trailers = [b"%b: %b\r\n" % trailer for trailer in self.incoming.trailers]
            self._pass_on(b"".join([b"0\r\n", *trailers, b"\r\n"]))
        self.request_sent = self.up is not None
        self.client.wait_for_replica()

    def _pass_on(self, data: bytes) -> None:
        if self.up is None:
            self._outgoing = self._outgoing or []
            self._outgoing.append(data)
            return
        self._keep_for_replay(data)
        self.up.transport.write(data)

    def _keep_for_replay(self, data: bytes) -> None:
        if not self._repeatable:
            return
        self._replay_size += len(data)
        if self._replay_size > REPLAYED:
            self._replay, self._repeatable = None, False
        else:
            self._replay = self._replay or []
            self._replay.append(data)

    # -- the answer ------------------------------------------------------------------------------------

    def on_informational(self, status: int, reason: bytes, headers: list[Header]) -> None:
        """An answer that comes before the answer, such as 103."""
        if status == 100 or not self.incoming.http_1_1:
            return
        head = answer_head(status, reason, headers, method="HEAD", http_1_1=True)
        self.client.write(b"".join([*head.lines, b"\r\n"]))

    def on_answer(self, status: int, reason: bytes, headers: list[Header]) -> None:
        """The head of the answer has come."""
        if self.upstream is not None:
            self.upstream.answered_with(status)
        head = answer_head(
            status, reason, headers, method=self.incoming.method, http_1_1=self.incoming.http_1_1
        )
        self.status = status
        self.answering = True
        self._framing = head.framing
        self.answer_head = head
        self._replay, self._repeatable = None, False
        if status == 101:
            protocol = first(headers, b"upgrade") or b""
            head.lines.append(b"connection: upgrade\r\nupgrade: %b\r\n\r\n" % protocol)
            self.client.write(b"".join(head.lines))
            return
        self.reads_until_close = head.until_close
        self.endless = head.endless
        self.client.write_head(head.lines, closes=self._lane.closing or head.framing is Framing.CLOSE)

    def on_whole_answer(self, answer: KnownAnswer, body: bytes) -> None:
        """A whole answer has come, with a head that has been read before."""
        if self.upstream is not None:
            self.upstream.answered_with(answer.status)
        self.status = answer.status
        self.complete = True
        self.keep_upstream = answer.keep_alive
        if self._lane.closing:
            self.client.keeps = False
        self.client.write_whole(answer.head, body)

    def on_answer_body(self, data: bytes) -> None:
        """A part of the answer's body has come."""
        if self._framing is Framing.CHUNKED:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self.client.write(data)
        self.client.wait_for_replica()

    def on_trailer(self, name: bytes, value: bytes) -> None:
        """A header after the body."""
        if self._trailers is None:
            self._trailers = []
        self._trailers.append((name, value))

    def on_answer_end(self) -> None:
        """The answer is complete."""
        if self._framing is Framing.CHUNKED:
            trailers = [b"%b: %b\r\n" % trailer for trailer in self._trailers or ()]
            self.client.write(b"".join([b"0\r\n", *trailers, b"\r\n"]))
        self.complete = True
        self.done()

    def done(self) -> None:
        """All is written, and the replica's connection is no longer ours."""
        self.up = None
        self._end()
        self.client.answered()

    # -- another protocol --------------------------------------------------------------------------------

    def switched(self, data: bytes) -> None:
        """The replica speaks another protocol from now on: pass everything both ways."""
        if self.up is None:
            return
        tunnel = Tunnel(self.client, self.up, self._tunnel_ended)
        self.up.tunnel = tunnel
        self.client.switch(tunnel)
        if data:
            tunnel.from_replica(data)
        if self._early:
            tunnel.from_client(b"".join(self._early))

    def early_bytes(self, data: bytes) -> None:
        """What the client has sent beyond its request, before the other protocol has begun."""
        self._early = [*(self._early or ()), data]

    def _tunnel_ended(self, error: Exception | None) -> None:
        self.up = None
        self.complete = error is None
        self._end()

    # -- back-pressure -----------------------------------------------------------------------------------

    def client_must_wait(self, waits: bool) -> None:
        """The replica takes no more just now, or does again."""
        self.client.hold_body(waits)

    def replica_must_wait(self, waits: bool) -> None:
        """The client takes no more just now, or does again."""
        if self.up is None or self.up.transport.is_closing():
            return
        self.up.hold(waits)

    # -- what goes wrong ---------------------------------------------------------------------------------

    def broke(self, error: UpstreamError) -> None:
        """The replica has failed: try another, or say so."""
        self.up = None
        upstream, self.upstream = self.upstream, None
        router = self._lane.router
        if upstream is None:
            self._fail(error)
            return
        repeatable = not self.answering and may_repeat(self.method, error, body_at_hand=self._repeatable)
        goes_on = router.may_go_on(self._way(), upstream, error, repeatable)
        upstream.release()
        if not goes_on:
            self._fail(error)
            return
        self.client.hold_body(False)
        another = router.pick(self._way())
        if another is None:
            self._wait_for_replica(error)
        else:
            self._go(another)

    def out_of_patience(self) -> None:
        """The replica has been silent for too long."""
        limit = self._lane.limits.response_timeout
        if self.up is not None:
            self.up.failed(UpstreamTimeoutError(f"{self.up.pool.name} did not answer within {limit:g} s"))

    def abandon(self) -> None:
        """The client has gone."""
        if self.over:
            return
        if self._task is not None:
            self._task.cancel()
        if self.up is not None:
            self.up.exchange = None
            self.up.transport.abort()
            self.up = None
        self._end()

    def _fail(self, error: LoadBalancerError) -> None:
        log_failure(self.request_head(), error)
        client = self.client
        if self.answering:
            # The answer stays unfinished: the connection breaks, and the client knows.
            self._end()
            client.abort()
            return
        self.status = error.status
        closes = not self.incoming.complete or not client.keeps
        client.write(own_answer(answer(error), close=closes, head_only=self.method == "HEAD"))
        self._end()
        client.answered(close=closes)

    def _end(self) -> None:
        if self.over:
            return
        self.over = True
        if self.upstream is not None:
            self.upstream.release()
            self.upstream = None
        if not self.incoming.own:
            self._lane.accounting.end(self.request_head, self, self._lane.clock() - self._began)
