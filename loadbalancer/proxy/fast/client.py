"""The client's side: requests that come over one connection, one after the other, and their answers."""

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING

import httptools

from loadbalancer.answers import answer
from loadbalancer.errors import (
    BadRequestError,
    BodyTooLargeError,
    HeadTimeoutError,
    HeadTooLargeError,
    LoadBalancerError,
)
from loadbalancer.proxy.fast.answering import own_answer
from loadbalancer.proxy.fast.exchange import Exchange
from loadbalancer.proxy.fast.incoming import Incoming, read_head
from loadbalancer.proxy.fast.tunnel import Tunnel
from loadbalancer.proxy.fast.writer import ClientWriter
from loadbalancer.proxy.headers import Header

if TYPE_CHECKING:
    from loadbalancer.proxy.fast.lane import FastLane

KNOWN_HEAD = 2048
"""Bytes of the longest request that is known again."""

LINGER = 2.0
"""Seconds that the rest of a request is still read, and dropped, after it has been answered."""


class ClientConnection(ClientWriter):
    """A client's connection.

    Requests that come before earlier ones are answered wait in order, and no more is read meanwhile.

    Args:
        lane: Whose it is.
    """

    __slots__ = (
        "_body_held",
        "_body_size",
        "_exchange",
        "_fed",
        "_handed_over",
        "_head_size",
        "_headers",
        "_in_body",
        "_last",
        "_messages",
        "_parser",
        "_paused",
        "_reading",
        "_refused",
        "_target",
        "_tunnel",
        "_waiting",
        "_waits_for_client",
        "address",
        "address_bytes",
        "deadline",
        "lane",
        "scheme",
        "write_held",
    )

    def __init__(self, lane: "FastLane") -> None:
        super().__init__()
        self.lane = lane
        self.address = ""
        self.address_bytes = b""
        self.scheme: str = lane.scheme
        self.deadline = math.inf
        self._parser = httptools.HttpRequestParser(self)
        self._headers: list[Header] = []
        self._target = b""
        self._fed = 0
        self._in_body = False
        self._reading: Incoming | None = None
        self._waiting: deque[Incoming | LoadBalancerError] = deque()
        self._exchange: Exchange | None = None
        self._refused = False
        self._handed_over = False
        self._tunnel: Tunnel | None = None
        self._body_held = False
        self.write_held = False
        self._waits_for_client = True
        self._paused = False
        self._messages = 0
        self._head_size = 0
        self._body_size = 0
        self._last: Incoming | None = None

    # -- asyncio.Protocol ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if isinstance(peer, tuple) else ""
        self.address_bytes = self.address.encode()
        try:
            self.lane.admit(self)
        except LoadBalancerError as error:
            self._refused = True
            self.write(own_answer(answer(error), close=True, head_only=False))
            self.transport.close()  # at once, for what is refused must not cost anything
            return
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() == "h2":
            self._handed_over = True
            self.lane.hand_over(self)
            return
        self.deadline = self.lane.now + self.lane.limits.idle_timeout

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if self._tunnel is not None:
            self._tunnel.from_client(data)
            return
        if self._refused:
            return  # what comes after nonsense has no meaning
        boundary = exchange is None and not self._fed and not self._in_body
        if boundary:
            known = self.lane.known.get(data) if len(data) <= KNOWN_HEAD else None
            if known is not None:
                self._begin(known)
                return
            self.deadline = self.lane.now + self.lane.limits.head_timeout
            self._messages = 0
        if not self._in_body:
            self._fed += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._after_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, LoadBalancerError):
                raise
            self._refuse(cause)
        except httptools.HttpParserError as error:
            self._refuse(BadRequestError(f"this is no HTTP/1.1 request: {error}"))
        else:
            if not self._in_body and self._fed > self.lane.limits.head:
                self._refuse(HeadTooLargeError(f"the head is longer than {self.lane.limits.head} bytes"))
        if boundary and self._messages == 1 and not self._fed:
            self._remember(data)
        self._regulate()

    def eof_received(self) -> bool:
        if self._tunnel is not None:
            self._tunnel.client_has_no_more()
            return True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.deadline = math.inf
        self.lane.forget(self)
        exchange, self._exchange = self._exchange, None
        self._waiting.clear()
        if exchange is not None:
            exchange.abandon()

    def pause_writing(self) -> None:
        self.write_held = True
        self.deadline = self.lane.now + self.lane.limits.idle_timeout
        self._waits_for_client = True
        if self._exchange is not None:
            self._exchange.replica_must_wait(True)

    def resume_writing(self) -> None:
        self.write_held = False
        if self._exchange is not None:
            self._exchange.replica_must_wait(False)
            self.wait_for_replica()

    # -- httptools ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._headers = []
        self._target = b""
        self._head_size = 0
        self._in_body = False

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            if self._reading is not None:
                self._reading.trailers.append((name, value))
            return
        self._headers.append((name, value))
        self._head_size += len(name) + len(value) + 4
        limits = self.lane.limits
        if len(self._headers) > limits.headers:
            raise HeadTooLargeError(f"there are more than {limits.headers} headers")
        if self._head_size > limits.head:
            raise HeadTooLargeError(f"the head is longer than {limits.head} bytes")

    def on_headers_complete(self) -> None:
        parser = self._parser
        incoming = read_head(
            parser.get_method(),
            self._target,
            parser.get_http_version(),
            self._headers,
            self.lane.limits,
            scheme=self.scheme.encode(),
            keep_alive=parser.should_keep_alive(),
            upgrade=parser.should_upgrade(),
        )
        self._in_body = True
        self._body_size = 0
        self._reading = incoming
        if self._exchange is None and not self._waiting:
            self._begin(incoming)
        else:
            self._waiting.append(incoming)

    def on_body(self, data: bytes) -> None:
        incoming, exchange = self._reading, self._exchange
        if incoming is None:
            return
        limit = self.lane.limits.body
        if limit:
            self._body_size += len(data)
            if self._body_size > limit:
                raise BodyTooLargeError(limit)
        if exchange is not None and exchange.incoming is incoming:
            exchange.on_request_body(data)
            self.deadline = self.lane.now + self.lane.limits.idle_timeout
        elif incoming in self._waiting:
            incoming.body.append(data)
        # Else it has been answered already, and nobody wants the rest.

    def on_message_complete(self) -> None:
        incoming, exchange = self._reading, self._exchange
        self._last, self._reading = incoming, None
        self._in_body = False
        self._fed = 0
        if incoming is None:
            return
        incoming.complete = True
        self._messages += 1
        if exchange is not None and exchange.incoming is incoming:
            exchange.on_request_end()
        elif exchange is None and not self._waiting:
            self._next()  # the rest of a request that was answered before it had come

    def _remember(self, data: bytes) -> None:
        """Know this request again, if it is no more than a head: clients often send the same one."""
        incoming = self._last
        if incoming is None or len(data) > KNOWN_HEAD:
            return
        if not (incoming.chunked or incoming.length or incoming.expects_continue or incoming.upgrade):
            self.lane.remember(data, incoming)

    # -- requests -----------------------------------------------------------------------------------

    def _begin(self, incoming: Incoming) -> None:
        self.keeps = incoming.keep_alive and not incoming.upgrade and not self.lane.closing
        self.http_1_1 = incoming.http_1_1
        self._body_held = False
        self._exchange = exchange = Exchange(self, incoming)
        exchange.start()
        if not incoming.complete:
            self.deadline = self.lane.now + self.lane.limits.idle_timeout
            self._waits_for_client = True

    def answered(self, *, close: bool = False) -> None:
        """The present request has been answered: go on with the next, or end."""
        if self._corked:
            self.uncork()
        exchange, self._exchange = self._exchange, None
        if close or not self.keeps or self.transport.is_closing():
            self._close(unread=exchange is not None and not exchange.incoming.complete)
            return
        if exchange is not None and not exchange.incoming.complete:
            self.deadline = self.lane.now + LINGER
            self._waits_for_client = True
            self._regulate()
            return
        if self._waiting or self._paused:
            self._next()
        else:
            self.deadline = self.lane.now + self.lane.limits.idle_timeout
            self._waits_for_client = True

    def _next(self) -> None:
        """Take up the next request that waits, or wait for one."""
        self.deadline = self.lane.now + self.lane.limits.idle_timeout
        self._waits_for_client = True
        while self._waiting and self._exchange is None:
            upcoming = self._waiting.popleft()
            if isinstance(upcoming, LoadBalancerError):
                self._answer_and_close(upcoming)
                return
            body, upcoming.body = upcoming.body, []
            self._begin(upcoming)
            if self._exchange is not None:
                for part in body:
                    self._exchange.on_request_body(part)
                if upcoming.complete:
                    self._exchange.on_request_end()
        self._regulate()

    def _after_upgrade(self, rest: bytes) -> None:
        """The parser has stopped at a request for another protocol: what follows is not parsed."""
        self._refused = self._tunnel is None
        if self._exchange is not None:
            self._exchange.incoming.complete = True
            self._exchange.request_sent = self._exchange.up is not None
            if rest:
                self._exchange.early_bytes(rest)

    def _refuse(self, error: LoadBalancerError) -> None:
        """What has come is no request: say so after the answers that are still to come, and end."""
        self._refused = True
        if self._exchange is not None and not self._exchange.incoming.complete:
            # The body of the present request makes no sense: the replica must not take it for whole.
            exchange, self._exchange = self._exchange, None
            exchange.abandon()
            if exchange.answering:
                self.abort()
                return
        if self._waiting and self._waiting[-1] is self._reading:
            self._waiting.pop()  # its turn has not come, and now never does
        if self._exchange is not None or self._waiting:
            self._waiting.append(error)
        else:
            self._answer_and_close(error)

    def _answer_and_close(self, error: LoadBalancerError) -> None:
        self.write(own_answer(answer(error), close=True, head_only=False))
        self._close(unread=True)

    def _close(self, *, unread: bool) -> None:
        """End the connection, so that the client can read what was written.

        Closing while the client still sends would make the kernel reset the connection and throw away
        the answer on its way (RFC 9112, section 9.6): half of it is closed, and the rest is read and dropped.
        """
        self._refused = True
        if unread and self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
            self.deadline = self.lane.now + LINGER
            self._regulate()
        else:
            self.transport.close()

    def switch(self, tunnel: Tunnel) -> None:
        """Another protocol is spoken from now on."""
        self._tunnel = tunnel
        self._refused = False
        self.keeps = False
        self.deadline = math.inf

    # -- patience and back-pressure ------------------------------------------------------------------------

    def wait_for_replica(self) -> None:
        """From now on the replica is waited for, unless the client has to take or send something first."""
        exchange = self._exchange
        if exchange is None or self.write_held or self._tunnel is not None:
            return
        if not exchange.incoming.complete:
            self.deadline = self.lane.now + self.lane.limits.idle_timeout
            self._waits_for_client = True
        elif exchange.up is not None:
            limit = self.lane.limits.response_timeout
            self.deadline = math.inf if exchange.endless else self.lane.now + limit
            self._waits_for_client = False
        else:
            self.deadline = math.inf  # connecting and waiting have time limits of their own

    def expired(self) -> None:
        """The deadline has passed."""
        self.deadline = math.inf
        exchange = self._exchange
        if exchange is not None and not self._waits_for_client:
            exchange.out_of_patience()
        elif exchange is None and self._fed and not self._refused and not self._reading:
            seconds = self.lane.limits.head_timeout
            self._answer_and_close(
                HeadTimeoutError(f"the head of the request did not come within {seconds:g} s")
            )
        elif exchange is None:
            self.transport.close()
        else:
            self.abort()

    def hold_body(self, held: bool) -> None:
        """The replica takes no more of the body just now, or does again."""
        self._body_held = held
        self._regulate()

    def body_may_come(self) -> None:
        """There is somebody to send the body to."""
        self._regulate()

    def _regulate(self) -> None:
        """Read on only when what comes can be passed on."""
        if self.transport.is_closing():
            return
        exchange = self._exchange
        unsent = exchange is not None and not exchange.incoming.complete and exchange.up is None
        pause = bool(self._waiting or self._body_held or unsent)
        if pause is not self._paused:
            self._paused = pause
            if pause:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def close_when_idle(self) -> None:
        """The lane closes: end now if nothing is in flight, else after the present answer."""
        if self._handed_over:
            return
        if self._exchange is None and not self._waiting:
            self.transport.close()
        elif self._tunnel is not None:
            self.abort()
        else:
            self.keeps = False
