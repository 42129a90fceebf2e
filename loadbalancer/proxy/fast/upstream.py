"""A connection to a replica, with its socket: the shell around `ReplicaSide`."""

import asyncio
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import httptools

from loadbalancer.errors import UpstreamClosedError, UpstreamError, UpstreamStaleError
from loadbalancer.proxy.fast.accepting import probe_when_silent
from loadbalancer.proxy.fast.quick import Validator, read_answer
from loadbalancer.proxy.fast.replica_side import Answered, ReplicaSide, ReplicaState

if TYPE_CHECKING:
    from loadbalancer.proxy.fast.carrier import Carrier
    from loadbalancer.proxy.fast.client import ClientConnection
    from loadbalancer.proxy.fast.pool import Pool

RESCUED = 1 << 20
"""Bytes of an early answer that are read from a connection which the replica has broken."""

_IDLE, _ASKED, _TUNNEL, _CLOSED = (
    ReplicaState.IDLE,
    ReplicaState.ASKED,
    ReplicaState.TUNNEL,
    ReplicaState.CLOSED,
)


class UpstreamConnection(ReplicaSide, asyncio.Protocol):
    """A connection to a replica. It serves one request at a time and is idle between two.

    Args:
        pool: Where it belongs.
    """

    __slots__ = (
        "_carrier",
        "_quick",
        "_read_held",
        "_rescue",
        "_validator",
        "idle_since",
        "pool",
        "transport",
        "used",
        "write_held",
    )

    def __init__(self, pool: "Pool") -> None:
        ReplicaSide.__init__(self, pool.name)
        self.pool = pool
        self.transport: asyncio.Transport
        self.used = False
        """Whether it has carried a whole answer before: then its end may just be the replica tidying up."""
        self.idle_since = 0.0
        self.write_held = False
        """Whether the replica takes no more just now."""
        self._read_held = False
        self._rescue: int | None = None
        self._validator = Validator(httptools.HttpResponseParser)
        self._quick: ClientConnection | None = None
        """The client whose usual request is under way."""
        self._carrier: Carrier | None = None
        """What carries any other request that is under way."""

    # -- asyncio.Protocol ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            probe_when_silent(sock)

    def data_received(self, data: bytes) -> None:
        client = self._quick
        if client is not None:
            try:
                if self._buffer:
                    data, self._buffer = self._buffer + data, b""
                answer = read_answer(data)
                if answer is True:
                    self._buffer = data
                    client.collect()
                    return
                if answer is not False and self._validator.accepts(data):
                    self._quick = None
                    self.state = _IDLE
                    self.used = True
                    self.pool.give_back(self)
                    client.quick_answered(answer)
                    return
            except Exception as error:
                if self._quick is not None:
                    client.defect(error)
                else:
                    client.lane.defect(error)
                    client.abort()  # it may have a part of the answer
                return
            client.take_general_way(self)
        carrier = self._carrier
        if carrier is None:
            self.drop()  # nobody has asked for anything
        else:
            carrier.guard(self._receive, data)

    def eof_received(self) -> bool:
        if self.state is _TUNNEL and self._carrier is not None:
            self._carrier.replica_has_no_more()
            return True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if self._quick is not None:
            self._quick.take_general_way(self)
        if self._carrier is not None:
            self._carrier.guard(self._lost, error)
        self._close_rescue()
        if self.state is not _CLOSED:
            self.become(_CLOSED)

    def pause_writing(self) -> None:
        self.write_held = True
        if self._carrier is not None:
            self._carrier.replica_held()

    def resume_writing(self) -> None:
        self.write_held = False
        if self._carrier is not None:
            self._carrier.replica_held()

    # -- for clients and carriers ----------------------------------------------------------------------

    def ask_quick(self, client: "ClientConnection", request: bytes) -> None:
        """Send a usual request.

        Args:
            client: Gets the answer.
            request: All of it.
        """
        self.state = _ASKED
        self._heads = 0
        self._method = "GET"  # or another whose answer has the same framing
        self._quick = client
        self.transport.write(request)

    def ask(self, carrier: "Carrier", method: str, *, streams: bool) -> None:
        """Begin to send any other request.

        Args:
            carrier: Gets the answer.
            method: Its method.
            streams: Whether a part of its body has yet to come.
        """
        self.asked(method)
        self._carrier = carrier
        if streams:
            self._prepare_rescue()

    def carried_by(self, carrier: "Carrier") -> None:
        """The usual request that is under way turns out to be unusual.

        Args:
            carrier: Gets the answer from now on.
        """
        self._quick = None
        self._carrier = carrier

    def receive_collected(self) -> None:
        """Have the beginning of a usual answer go the general way, because the rest takes its time."""
        if self._quick is not None and self._buffer:
            self._quick.take_general_way(self)
            data, self._buffer = self._buffer, b""
            if self._carrier is not None:
                self._carrier.guard(self._receive, data)

    def hold(self, held: bool) -> None:
        """Read no more for now, or read on."""
        if held is not self._read_held and not self.transport.is_closing():
            self._read_held = held
            if held:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def finish(self, *, request_whole: bool) -> None:
        """The answer is whole: be idle, or end.

        Args:
            request_whole: Whether the whole request was sent.
        """
        self._carrier = None
        self._close_rescue()
        self.hold(False)
        if request_whole and not self.transport.is_closing() and self.reuse():
            self.used = True
            self.pool.give_back(self)
        elif request_whole:
            self.transport.close()
        else:
            self.transport.abort()  # the replica may never take what was written of the request

    def drop(self) -> None:
        """End at once: the connection is of no use any more."""
        self._carrier = self._quick = None
        if self.state is not _CLOSED:
            self.become(_CLOSED)
        self.transport.abort()

    def close_half(self) -> None:
        """The client sends nothing more through the tunnel."""
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()

    # -- within --------------------------------------------------------------------------------------

    def _receive(self, data: bytes) -> None:
        if self._carrier is None:
            return
        answered = self.receive(data)
        head = answered.head
        told_408 = head is not None and head.status == 408 and not head.keep_alive
        if told_408 and self.used and self._carrier.may_meet_a_stale_connection:
            # Perhaps it answers nothing, but tells that the replica closes the idle connection (RFC 9110,
            # section 15.5.9). A request that cannot be sent again is on a connection that was not idle.
            answered = Answered(error=UpstreamStaleError(f"{self.name} closed an idle connection with a 408"))
        self._carrier.replica_sent(answered)

    def _lost(self, error: Exception | None) -> None:
        """The connection has ended: hear what the replica has said before, and then say so."""
        self._read_rescue()
        carrier = self._carrier
        if carrier is None:
            return
        if self.state is _TUNNEL:
            carrier.tunnel_ended(error)
            return
        begun = self.begun
        if self.ended() and error is None:
            carrier.replica_sent(Answered(whole=True))
            return
        why = getattr(error, "strerror", None) or "it ended"
        if begun:
            kind: type[UpstreamError] = UpstreamClosedError
            sentence = f"{self.name} broke off in the middle of its answer: {why}"
        else:
            kind = UpstreamStaleError if self.used else UpstreamClosedError
            sentence = f"{self.name} broke the connection before it had answered: {why}"
        carrier.replica_sent(Answered(error=kind(sentence)))

    def _prepare_rescue(self) -> None:
        """Keep a second handle on the socket while a body streams.

        A replica may answer early and close without reading the rest (RFC 9112, section 9.5). Then writing
        fails and the event loop closes its handle, although the kernel still holds the answer.
        """
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with suppress(OSError):
                self._rescue = os.dup(sock.fileno())

    def _read_rescue(self) -> None:
        if self._rescue is None or self.state is not _ASKED:
            return
        with socket.socket(fileno=self._rescue) as sock:
            self._rescue = None
            sock.setblocking(False)
            left = RESCUED
            with suppress(OSError):
                while left > 0 and self._carrier is not None and (data := sock.recv(65536)):
                    left -= len(data)
                    self._receive(data)

    def _close_rescue(self) -> None:
        rescue, self._rescue = self._rescue, None
        if rescue is not None:
            os.close(rescue)
