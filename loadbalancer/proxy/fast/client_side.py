"""The client's side of a connection without I/O: bytes in, requests out, one after the other.

The states say how far the present request and its answer are:

    IDLE ──► HEAD ──► BODY ──► ANSWER ──► IDLE …
                       └─────► REST ────► IDLE        the answer was whole before the request
                               ANSWER ──► TUNNEL      another protocol
    any state ──► CLOSING ──► CLOSED

A side never reads beyond the present request: what comes after it is kept as bytes until its answer is whole,
so pipelined requests and the early bytes of another protocol need no queue of their own. (The states follow
h11, `h11/_state.py`.)
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

import httptools

from loadbalancer.errors import (
    BadRequestError,
    BodyTooLargeError,
    DefectError,
    HeadTooLargeError,
    LoadBalancerError,
)
from loadbalancer.proxy.fast.bodies import (
    BodyFramingError,
    BodyReader,
    ChunkedReader,
    Framing,
    LengthReader,
    TrailersTooLargeError,
    allowed_trailers,
)
from loadbalancer.proxy.fast.limits import Limits
from loadbalancer.proxy.fast.peer import Peer
from loadbalancer.proxy.fast.request_head import TOKEN, Request, not_http, read_head
from loadbalancer.proxy.headers import Header

END_OF_HEAD = b"\r\n\r\n"

LONGEST_METHOD = 64
"""Bytes after which an unknown method is refused although its end has not come."""


class ClientState(Enum):
    """How far the present request and its answer are."""

    IDLE = auto()
    """Nothing of a request has come."""
    HEAD = auto()
    """A part of a head has come."""
    BODY = auto()
    """The head has come, and not all of the body; the answer is not whole."""
    ANSWER = auto()
    """The whole request has come; the answer is not whole."""
    REST = auto()
    """The answer is whole; what is left of the request is read and dropped."""
    TUNNEL = auto()
    """Another protocol is spoken: bytes pass as they come."""
    CLOSING = auto()
    """Nothing is read any more: what comes is dropped until the connection ends."""
    CLOSED = auto()
    """The connection has ended."""


_S = ClientState

MAY_FOLLOW = {
    _S.IDLE: {_S.HEAD, _S.BODY, _S.ANSWER, _S.CLOSING, _S.CLOSED},
    _S.HEAD: {_S.BODY, _S.ANSWER, _S.CLOSING, _S.CLOSED},
    _S.BODY: {_S.ANSWER, _S.REST, _S.CLOSING, _S.CLOSED},
    _S.ANSWER: {_S.IDLE, _S.TUNNEL, _S.CLOSING, _S.CLOSED},
    _S.REST: {_S.IDLE, _S.CLOSING, _S.CLOSED},
    _S.TUNNEL: {_S.CLOSING, _S.CLOSED},
    _S.CLOSING: {_S.CLOSED},
    _S.CLOSED: set(),
}
"""Which states may follow which."""


@dataclass(slots=True)
class Received:
    """What some bytes bring of the present request, in this order.

    Args:
        request: Its head.
        body: A part of its body.
        whole: Whether it is whole now.
        trailers: Headers that came after its body.
        error: Why it is none; nothing after it is read.
    """

    request: Request | None = None
    body: bytes = b""
    whole: bool = False
    trailers: list[Header] = field(default_factory=list)
    error: LoadBalancerError | None = None


class ClientSide:
    """The client's side of one connection.

    Args:
        limits: Bounds; a request beyond them is refused.
        make_id: Makes ids for requests that bring none.
    """

    __slots__ = ("_body", "_body_size", "_buffer", "_limits", "_make_id", "_probe", "peer", "state")

    def __init__(self, limits: Limits, make_id: Callable[[], str]) -> None:
        self.state = ClientState.IDLE
        self.peer: Peer
        self._limits = limits
        self._make_id = make_id
        self._buffer = b""
        self._body: BodyReader | None = None
        self._body_size = 0
        self._probe: httptools.HttpRequestParser | None = None

    def become(self, state: ClientState) -> None:
        """Change the state.

        Raises:
            DefectError: That state may not follow.
        """
        if state not in MAY_FOLLOW[self.state]:
            raise DefectError(f"a client's side cannot go from {self.state.name} to {state.name}")
        self.state = state

    def receive(self, data: bytes) -> Received:
        """Take bytes of the connection, in the states up to ANSWER and REST.

        Args:
            data: The next ones; empty to go on with those that are kept.
        """
        received = Received()
        try:
            self._receive(data, received)
        except LoadBalancerError as error:
            received.error = error
        return received

    def _receive(self, data: bytes, received: Received) -> None:
        if self._buffer and self.state is not ClientState.HEAD:
            data, self._buffer = self._buffer + data, b""
        if self.state is ClientState.REST:
            data = self._drop_rest(data)
        if self.state is ClientState.IDLE or self.state is ClientState.HEAD:
            data = self._read_head(data, received)
        if self.state is ClientState.BODY:
            data = self._read_body(data, received)
        if data:
            self._buffer = data

    @property
    def unread(self) -> bool:
        """Whether bytes are kept that come after the present request."""
        return bool(self._buffer) and self.state is not ClientState.HEAD

    def answered(self) -> None:
        """The answer is whole: the next request may follow, once the rest of this one has come."""
        self.become(ClientState.REST if self.state is ClientState.BODY else ClientState.IDLE)

    def switched(self) -> bytes:
        """Another protocol is spoken from now on.

        Returns:
            What the client has sent of it already.
        """
        self.become(ClientState.TUNNEL)
        early, self._buffer = self._buffer, b""
        return early

    def stop_reading(self) -> None:
        """Drop what comes from now on."""
        self.become(ClientState.CLOSING)
        self._buffer = b""
        self._body = self._probe = None

    # -- within --------------------------------------------------------------------------------------

    def _read_head(self, data: bytes, received: Received) -> bytes:
        """Look for a whole head; keep what there is of one, or return what comes after it."""
        before, self._buffer = self._buffer, b""
        data = before + data if before else data
        if not before:
            data = data.lstrip(b"\r\n")  # empty lines in front of a request (RFC 9112, section 2.2)
        if not data:
            return b""
        end = data.find(END_OF_HEAD, max(0, len(before) - 3)) + 4
        if end < 4:
            self._keep_part_of_head(data, len(before))
            return b""
        self._probe = None
        if end > self._limits.head:
            raise self._too_large(data)
        request = read_head(data[:end], self.peer, self._limits, self._make_id)
        received.request = request
        self._body_size = 0
        if request.framing is Framing.NONE:
            received.whole = True
            self.become(ClientState.ANSWER)
        else:
            chunked = request.framing is Framing.CHUNKED
            self._body = ChunkedReader(self._limits.head) if chunked else LengthReader(request.length)
            self.become(ClientState.BODY)
        return data[end:]

    def _keep_part_of_head(self, data: bytes, known: int) -> None:
        """Keep a part of a head, unless it is clear already that it begins none."""
        if len(data) > self._limits.head:
            raise self._too_large(data)
        if self.state is ClientState.IDLE:
            self.become(ClientState.HEAD)
        if self._probe is None:
            self._probe, known = httptools.HttpRequestParser(None), 0
        try:
            self._probe.feed_data(data[known:])
        except httptools.HttpParserInvalidMethodError:
            if len(data) > LONGEST_METHOD or not TOKEN.fullmatch(data):
                read_head(data, self.peer, self._limits, self._make_id)
        except httptools.HttpParserError as error:
            raise not_http(error) from None
        self._buffer = data

    def _too_large(self, data: bytes) -> HeadTooLargeError:
        target = data.partition(b"\r\n")[0].partition(b" ")[2].partition(b" ")[0]
        if len(target) > self._limits.target:
            return HeadTooLargeError(f"the request target is longer than {self._limits.target} bytes", 414)
        return HeadTooLargeError(f"the head is longer than {self._limits.head} bytes")

    def _read_body(self, data: bytes, received: Received) -> bytes:
        body = self._body
        if body is None:
            raise DefectError("a body is read without a reader")
        received.body, rest = _read(body, data)
        limit = self._limits.body
        if limit:
            self._body_size += len(received.body)
            if self._body_size > limit:
                raise BodyTooLargeError(limit)
        if body.whole:
            received.whole = True
            received.trailers = allowed_trailers(body)
            self._body = None
            self.become(ClientState.ANSWER)
        return rest

    def _drop_rest(self, data: bytes) -> bytes:
        body = self._body
        if body is None:
            raise DefectError("a body is read without a reader")
        _, rest = _read(body, data)
        if body.whole:
            self._body = None
            self.become(ClientState.IDLE)
        return rest


def _read(body: BodyReader, data: bytes) -> tuple[bytes, bytes]:
    try:
        return body.read(data)
    except TrailersTooLargeError as error:
        raise HeadTooLargeError(str(error)) from None
    except BodyFramingError as error:
        raise BadRequestError(f"the body's chunks make no sense: {error}") from None
