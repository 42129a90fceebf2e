"""The short way of a client's usual requests, without an exchange of their own.

The packet of a request is read by `quick` and sent on, and the packet of the answer comes back by
`quick_answered`. As soon as anything unusual happens the request is carried like any other
(`take_general_way`).
"""

from typing import TYPE_CHECKING

import httptools

from loadbalancer.proxy.fast.carrier import Carrier
from loadbalancer.proxy.fast.client_shell import ClientShell
from loadbalancer.proxy.fast.client_side import END_OF_HEAD, ClientState
from loadbalancer.proxy.fast.exchange import Exchange
from loadbalancer.proxy.fast.quick import REQUEST_LINE, QuickRequest, Validator, read_request
from loadbalancer.proxy.fast.request_head import read_head
from loadbalancer.proxy.fast.upstream import UpstreamConnection
from loadbalancer.routing.upstream import Upstream
from loadbalancer.telemetry.access_log import AccessLog

if TYPE_CHECKING:
    from loadbalancer.proxy.fast.lane import FastLane

G = ord("G")
"""The first byte of GET, which may be sent again."""

_IDLE, _ANSWER = ClientState.IDLE, ClientState.ANSWER


class ClientConnection(ClientShell):
    """A client's connection.

    Args:
        lane: Whose it is.
        source: Address of the client, where a proxy has told it in front of everything else.
    """

    __slots__ = ("_connection", "_id", "_keeps", "_quick", "_upstream", "_validator")

    def __init__(self, lane: "FastLane", source: str = "") -> None:
        ClientShell.__init__(self, lane, source)
        self._validator = Validator(httptools.HttpRequestParser)
        self._quick = b""
        """The packet of the usual request that is under way."""
        self._id = ""
        self._keeps = True
        """Whether the usual request that is under way lets the connection go on."""
        self._upstream: Upstream | None = None
        self._connection: UpstreamConnection | None = None
        """The connection on which the usual request was sent; None when there is none."""

    def data_received(self, data: bytes) -> None:
        if self.state is _IDLE and not self.write_held:
            try:
                request = read_request(data, self._limits, self.peer.trusted)
                if request is not None and self._validator.accepts(data):
                    self._begin_quick(data, request)
                    return
            except Exception as error:
                self.defect(error)
                return
        ClientShell.data_received(self, data)

    def defect(self, error: Exception) -> None:
        """See `ClientShell.defect`."""
        self._leave_the_short_way()
        if self._carrier is None and self.state is _ANSWER:
            self._carrier = self._carrier_of_quick()
        ClientShell.defect(self, error)

    def release_collected(self, began: float) -> None:
        """See `ClientShell.release_collected`."""
        if self._connection is None:
            ClientShell.release_collected(self, began)
        elif began == self._began:
            self._connection.receive_collected()

    def _leave_the_short_way(self) -> None:
        if self._connection is not None:
            self.take_general_way(self._connection)

    def _begin_quick(self, data: bytes, request: QuickRequest) -> None:
        """Send a usual request on; `data` is its packet."""
        lane = self.lane
        target, head, host, given, body, keeps = request
        self._id = request_id = given.decode("latin-1") if given else lane.ids.make()
        self._quick = data
        self._keeps = keeps
        self._began = lane.clock()
        lane.accounting.metrics.in_flight += 1
        self.state = _ANSWER
        key = lane.key
        upstream = lane.router.first(
            request_id
            if key is None
            else key(data[: -len(body)] if body else data, target, self.peer.address, request_id)
        )
        connection = lane.pool(upstream).take(data[0] != G) if upstream is not None else None
        if upstream is None or connection is None:
            self._carrier = carrier = self._carrier_of_quick()
            carrier.go_on(upstream)
            return
        upstream.acquire()
        self._upstream = upstream
        self._connection = connection
        self.deadline = lane.now + self._limits.response_timeout
        forwarded = self.peer.forwarded
        if given:
            parts: tuple[bytes, ...] = (head, forwarded, host, END_OF_HEAD, body)
        else:
            parts = (head, forwarded, host, b"\r\nx-request-id: ", request_id.encode(), END_OF_HEAD, body)
        connection.ask_quick(self, b"".join(parts))

    def quick_answered(self, answered: tuple[int, bytes]) -> None:
        """The usual answer to a usual request has come."""
        status, data = answered
        lane, upstream = self.lane, self._upstream
        self._connection = self._upstream = None
        last = not self._keeps or ((lane.closing or self._half_closed) and self.last)
        if last:
            data = data.replace(END_OF_HEAD, b"\r\nconnection: close\r\n\r\n", 1)
        self.transport.write(data)
        if upstream is not None:
            upstream.record_answer(status)
            upstream.release()
            accounting, seconds = lane.accounting, lane.clock() - self._began
            metrics = accounting.metrics
            metrics.in_flight -= 1
            metrics.count(upstream.hostname, status, seconds)
            if accounting.access_log is not None:
                self._log(accounting.access_log, upstream.hostname, status, seconds)
        self._quick = b""
        self.state = _IDLE
        if last:
            self._close()
        elif self._buffer or self._paused:
            self._proceed()
        else:
            self.deadline = lane.now + self._limits.idle_timeout

    def take_general_way(self, connection: UpstreamConnection) -> None:
        """Have the usual request that is under way carried like any other.

        Args:
            connection: The connection on which it was sent.
        """
        upstream = self._upstream
        self._connection = self._upstream = None
        self._carrier = carrier = self._carrier_of_quick()
        if upstream is not None:
            carrier.take_over(upstream, connection)
        connection.carried_by(carrier)

    def _carrier_of_quick(self) -> Carrier:
        data, self._quick = self._quick, b""
        end = data.find(END_OF_HEAD) + 4
        request_id = self._id
        request = read_head(data[:end], self.peer, self._limits, lambda: request_id)
        exchange = Exchange(request, self._began)
        if end < len(data):
            exchange.request_part(data[end:])
        exchange.request_end([])
        return Carrier(self, exchange)

    def _log(self, log: AccessLog, replica: str, status: int, seconds: float) -> None:
        line = REQUEST_LINE.match(self._quick)
        if line is not None:
            method, target = line.groups()
            log.write(
                method.decode(),
                target.decode(),
                self.peer.address,
                self._id,
                status=status,
                complete=True,
                replica=replica,
                seconds=seconds,
            )
