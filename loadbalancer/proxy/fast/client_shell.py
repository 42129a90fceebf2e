"""A client's connection, with its socket: the shell around `ClientSide`.

It hands each request to a `Carrier` of its own, holds reading and writing back, keeps the deadline, and ends
the connection so that the client can read the last answer. `client` adds the short way of usual requests.
"""

import asyncio
import math
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from loadbalancer.answers import answer
from loadbalancer.errors import HeadTimeoutError, LoadBalancerError
from loadbalancer.proxy.fast.carrier import Carrier
from loadbalancer.proxy.fast.client_side import ClientSide, ClientState, Received
from loadbalancer.proxy.fast.exchange import Exchange, own_answer
from loadbalancer.proxy.fast.peer import Peer
from loadbalancer.proxy.forwarding import plain
from loadbalancer.routing.upstream import authority

if TYPE_CHECKING:
    from loadbalancer.proxy.fast.lane import FastLane

LINGER = 2.0
"""Seconds for which the rest of a request is read, and dropped, after its answer: the client can read
that."""

CONTINUE_AFTER = 1.0
"""Seconds for a replica to answer an `Expect: 100-continue` that the client waits for; many never do."""

_IDLE, _HEAD, _BODY, _ANSWER, _REST, _TUNNEL, _CLOSING, _CLOSED = ClientState
"""The states by short names (members of an enumeration are slow to look up)."""


class ClientShell(ClientSide, asyncio.Protocol):
    """A client's connection, all of whose requests go the general way.

    Args:
        lane: Whose it is.
        source: Address of the client, where a proxy has told it in front of everything else.
    """

    __slots__ = (
        "_began",
        "_carrier",
        "_half_closed",
        "_paused",
        "_source",
        "deadline",
        "lane",
        "transport",
        "write_held",
    )

    def __init__(self, lane: "FastLane", source: str = "") -> None:
        ClientSide.__init__(self, lane.limits, lane.ids.make)
        self.lane = lane
        self.transport: asyncio.Transport
        self.deadline = math.inf
        """The lane's time at which `expired` is called."""
        self._source = source
        self._half_closed = False
        self.write_held = False
        """Whether the client takes no more just now."""
        self._paused = False
        self._carrier: Carrier | None = None
        self._began = 0.0

    # -- asyncio.Protocol ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        self.peer = Peer(
            self._source or (plain(peer[0]) if isinstance(peer, tuple) else ""),
            self.lane.scheme,
            self._own_address,
            self.lane.proxies,
        )
        try:
            self.lane.admit(self)
        except LoadBalancerError as error:
            self._refuse(error)
            return
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() == "h2":
            self.become(_CLOSED)
            self.lane.hand_over(self)
            return
        # One that came while the lane closes gets a moment for the request that it may have sent.
        self.deadline = self.lane.now + (LINGER if self.lane.closing else self._limits.idle_timeout)

    def data_received(self, data: bytes) -> None:
        try:
            self._take(data)
        except Exception as error:
            self.defect(error)

    def _own_address(self) -> bytes:
        ours = self.transport.get_extra_info("sockname")
        return authority(ours[0], ours[1]).encode() if isinstance(ours, tuple) else b"localhost"

    def eof_received(self) -> bool:
        """The client sends no more, which does not mean that it has gone (RFC 9112, section 9.6)."""
        if not self.transport.can_write_eof():
            return False  # TLS, as asyncio has it, knows no half of a connection
        if self.state is _TUNNEL and self._carrier is not None:
            self._half_closed = True
            self._carrier.client_has_no_more()
            return True
        carrier = self._carrier
        streaming = carrier is not None and carrier.exchange.endless
        self._half_closed = self.state is _ANSWER and not streaming
        if streaming:
            self.transport.abort()  # who ends a stream of events has gone
        elif not self._half_closed and self.state is not _BODY:
            self._close_when_taken()
        return self._half_closed

    def connection_lost(self, error: Exception | None) -> None:
        self.deadline = math.inf
        self.lane.forget(self)
        if self.state is not _CLOSED:
            self.become(_CLOSED)
        self._leave_the_short_way()
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.abandon()

    def pause_writing(self) -> None:
        self.write_held = True
        self._client_held()

    def resume_writing(self) -> None:
        self.write_held = False
        self._client_held()

    @property
    def half_closed(self) -> bool:
        """Whether the client has said that it sends no more."""
        return self._half_closed

    @property
    def last(self) -> bool:
        """Whether the connection ends with the present answer, whatever that says."""
        return self.lane.closing or (self._half_closed and not self.unread)

    def defect(self, error: Exception) -> None:
        """A step of ours has failed in a way that it did not foresee."""
        if self._carrier is not None:
            self._carrier.defect(error)
        else:
            self.lane.defect(error)
            self.abort()

    def _client_held(self) -> None:
        self._leave_the_short_way()
        if self._carrier is not None:
            self._carrier.client_held()
            self.set_deadline()

    def _leave_the_short_way(self) -> None:
        """See that the request that is under way has a carrier."""

    # -- requests --------------------------------------------------------------------------------------

    def _take(self, data: bytes) -> None:
        state = self.state
        if state is _TUNNEL:
            if self._carrier is not None:
                self._carrier.tunnel_received(data)
                self.tunnel_alive()
        elif state is not _CLOSING and state is not _CLOSED:
            self._handle(self.receive(data))
            if self.state is _HEAD and state is not _HEAD:
                self.deadline = self.lane.now + self._limits.head_timeout
            elif self.state is _IDLE and state is _REST:
                self.deadline = self.lane.now + self._limits.idle_timeout

    def _handle(self, received: Received) -> None:
        if received.request is not None and received.error is None:
            self._began = self.lane.clock()
            self._carrier = carrier = Carrier(self, Exchange(received.request, self._began))
            carrier.request_received(received)
            carrier.start()
        elif self._carrier is not None and received.error is None and (received.body or received.whole):
            self._carrier.request_received(received)
        if received.error is not None:
            self._refuse(received.error)
        self.regulate()

    def _proceed(self) -> None:
        """Take up what the client has sent beyond the request that was answered."""
        self.deadline = self.lane.now + self._limits.idle_timeout
        if self.unread:
            self._take(b"")
        if self._half_closed and (self.state is _IDLE or self.state is _HEAD):
            self._close()
        self.regulate()

    # -- for carriers ----------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send bytes to the client."""
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def finished(self, *, keeps: bool) -> None:
        """The answer is whole.

        Args:
            keeps: Whether the connection goes on after it.
        """
        self._carrier = None
        if self.state is _CLOSED:
            return
        if not keeps or self.last or self.transport.is_closing():
            self._close()
            return
        self.answered()
        if self.state is _REST:
            self.deadline = self.lane.now + LINGER
            self.regulate()
        else:
            self._proceed()

    def abort(self, *, reset: bool = False) -> None:
        """Break off: the client must not take what it has for the whole.

        Args:
            reset: Whether an orderly end of the connection would look like the end of the answer.
        """
        sock = self.transport.get_extra_info("socket")
        if reset and sock is not None:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def collect(self) -> None:
        """A part of a short answer is kept back: see to it that this does not take long."""
        self.lane.collecting.append((self, self._began))

    def release_collected(self, began: float) -> None:
        """Pass on what is kept back, unless that has been done.

        Args:
            began: When the request came whose answer it is.
        """
        if began == self._began and self._carrier is not None:
            self._carrier.release_collected()

    def switch(self) -> bytes:
        """Another protocol is spoken from now on.

        Returns:
            What the client has sent of it already.
        """
        early = self.switched()
        self.tunnel_alive()
        self.regulate()
        return early

    def tunnel_alive(self) -> None:
        """Bytes have passed through the tunnel."""
        limit = self._limits.tunnel_idle_timeout
        self.deadline = self.lane.now + limit if limit else math.inf

    def tunnel_ended(self, error: Exception | None) -> None:
        """The replica's end of the tunnel has ended."""
        self._carrier = None
        if error is None:
            self._close_when_taken()
        else:
            self.transport.abort()

    def close_half(self) -> None:
        """Nothing more comes from the replica."""
        if not self.transport.can_write_eof():
            self._close_when_taken()
        elif not self.transport.is_closing():
            self.transport.write_eof()

    # -- ends ------------------------------------------------------------------------------------------

    def _refuse(self, error: LoadBalancerError) -> None:
        """What has come is no request, or cannot be one here: say so, and end."""
        if self.state is _REST:
            self._close()  # the request has been answered
            return
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            # The body of the present request makes no sense: the replica must not take it for whole.
            answering = carrier.exchange.answering
            carrier.abandon(error.status)
            if answering:
                self.abort()
                return
        else:
            self.lane.accounting.refused(error.status)
        self.write(own_answer(answer(error), close=True))
        self._close(unread=True)

    def _close(self, *, unread: bool = False) -> None:
        """End the connection, so that the client can read what was written.

        Closing while the client still sends makes the kernel reset the connection and throw away the answer
        on its way (RFC 9112, section 9.6): half of it is closed, and what comes is read and dropped for a
        while.

        Args:
            unread: Whether something that the client has sent, or sends, is not read.
        """
        unread = unread or self.state is _BODY or self.state is _REST or self._paused or self.unread
        if self.transport.is_closing():
            return
        self.stop_reading()
        if not unread:
            self._close_when_taken()
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.deadline = self.lane.now + LINGER
        self.regulate()

    def _close_when_taken(self) -> None:
        """Close the connection as soon as the client has taken what was written, if it does so in time."""
        self.deadline = self.lane.now + self._limits.idle_timeout
        self.transport.close()

    def drain(self) -> None:
        """The lane closes: end now if nothing is in flight, else after the present answer."""
        if self.state is _IDLE:
            self._close_when_taken()

    # -- patience and back-pressure --------------------------------------------------------------------

    def set_deadline(self) -> None:
        """Give whoever is to do something next its time."""
        carrier, limits, now = self._carrier, self._limits, self.lane.now
        if carrier is None or self.state is _TUNNEL:
            return
        if self.write_held:
            self.deadline = now + limits.idle_timeout
        elif carrier.replica_is_due:
            endless = carrier.exchange.endless
            limit = limits.tunnel_idle_timeout if endless else limits.response_timeout
            self.deadline = now + limit if limit else math.inf
        elif carrier.exchange.awaits_continue:
            self.deadline = now + CONTINUE_AFTER
        elif carrier.must_wait or self.state is not _BODY:
            self.deadline = (
                math.inf
            )  # waiting for a replica and for a connection have time limits of their own
        else:
            self.deadline = now + limits.idle_timeout

    def expired(self) -> None:
        """The deadline has passed."""
        self.deadline = math.inf
        self._leave_the_short_way()
        carrier = self._carrier
        if self.transport.is_closing():
            self.abort()  # the client does not take the rest
        elif self.state is _HEAD:
            seconds = self._limits.head_timeout
            self._refuse(HeadTimeoutError(f"the head of the request did not come within {seconds:g} s"))
        elif self.state is _IDLE or self.state is _REST or self.state is _CLOSING:
            self._close_when_taken()  # no reset: the kernel may still have a part of the answer
        elif carrier is None:
            self.abort()
        elif carrier.replica_is_due and not self.write_held and self.state is not _TUNNEL:
            carrier.out_of_patience()
        elif carrier.exchange.awaits_continue:
            self.write(carrier.exchange.go_on())
            self.set_deadline()
        else:
            self.abort()

    def regulate(self) -> None:
        """Read on only when what comes can be passed on, or is dropped."""
        if self.transport.is_closing():
            return
        carrier = self._carrier
        pause = self.unread or (carrier is not None and carrier.must_wait)
        if pause is not self._paused:
            self._paused = pause
            if pause:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()
