"""One request and its answer without I/O: what each side has sent comes in, what goes to the other side
comes out.

    SEEKING ──► ASKED ──► COLLECTING ──► ANSWERING ──► OVER
       ▲          │           │
       └──────────┴───────────┘ the replica has failed, and the request is sent again
    ASKED ──► TUNNEL ──► OVER

A short answer is collected until it is whole (or for a moment), so that a replica that dies in the middle of
it costs nothing where the request may be sent again. Everything longer streams.
"""

from enum import Enum, auto

from loadbalancer.answers import Answer, encode
from loadbalancer.errors import DefectError, UpstreamGarbledError
from loadbalancer.proxy.accounting import CLIENT_GONE
from loadbalancer.proxy.fast.answer_head import REASONS, AnswerHead, with_date
from loadbalancer.proxy.fast.bodies import Framing
from loadbalancer.proxy.fast.quick import COLLECTED
from loadbalancer.proxy.fast.request_head import Request
from loadbalancer.proxy.headers import Header

REPLAYED = 64 * 1024
"""Bytes of a request's body that are kept, so that it can be sent again."""


class ExchangeState(Enum):
    """How far the exchange is."""

    SEEKING = auto()
    """No replica has the request."""
    ASKED = auto()
    """A replica has the request, at least in part; its final answer has not begun."""
    COLLECTING = auto()
    """A short answer is coming; the client has nothing of it."""
    ANSWERING = auto()
    """The final answer goes to the client."""
    TUNNEL = auto()
    """Another protocol is spoken."""
    OVER = auto()
    """Nothing more comes."""


_S = ExchangeState

MAY_FOLLOW = {
    _S.SEEKING: {_S.ASKED, _S.ANSWERING, _S.OVER},
    _S.ASKED: {_S.SEEKING, _S.COLLECTING, _S.ANSWERING, _S.TUNNEL, _S.OVER},
    _S.COLLECTING: {_S.SEEKING, _S.ANSWERING, _S.OVER},
    _S.ANSWERING: {_S.OVER},
    _S.TUNNEL: {_S.OVER},
    _S.OVER: set(),
}
"""Which states may follow which."""


class Exchange:
    """One request and its answer.

    Args:
        request: The head of the request.
        began: When it came, in seconds of the lane's clock.
    """

    def __init__(self, request: Request, began: float) -> None:
        self.state = ExchangeState.SEEKING
        self.request = request
        self.began = began
        self.replica = ""
        """The name of the replica that had it last."""
        self.status = CLIENT_GONE
        self.complete = False
        """Whether the whole answer has been handed over."""
        self.request_whole = False
        """Whether the whole request has come."""
        self.repeatable = True
        """Whether everything that was sent can be sent again."""
        self.keeps = request.keep_alive
        """Whether the client's connection goes on after this."""
        self.endless = False
        """Whether the answer is a stream of events, which may be silent."""
        self.awaits_continue = request.expects_continue
        """Whether the client waits for a 100 before it sends the body."""
        self._framing = Framing.NONE
        self._kept: list[bytes] = []
        self._kept_size = 0
        self._collected: list[bytes] = []

    def become(self, state: ExchangeState) -> None:
        """Change the state.

        Raises:
            DefectError: That state may not follow.
        """
        if state not in MAY_FOLLOW[self.state]:
            raise DefectError(f"an exchange cannot go from {self.state.name} to {state.name}")
        self.state = state

    @property
    def answering(self) -> bool:
        """Whether the client has a part of the final answer."""
        return self.state is ExchangeState.ANSWERING or self.state is ExchangeState.TUNNEL

    @property
    def ends_with_connection(self) -> bool:
        """Whether the end of the client's connection shows it the end of the answer."""
        return self._framing is Framing.CLOSE

    @property
    def switched(self) -> bool:
        """Whether another protocol is spoken."""
        return self.state is ExchangeState.TUNNEL

    # -- the request -----------------------------------------------------------------------------------

    def request_part(self, data: bytes) -> bytes:
        """A part of the request's body has come.

        Args:
            data: The part, without its framing.

        Returns:
            What the replica gets now.
        """
        self.awaits_continue = False
        if self.request.framing is Framing.CHUNKED:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        return self._pass_on(data)

    def request_end(self, trailers: list[Header]) -> bytes:
        """The whole request has come.

        Args:
            trailers: Headers after its body.

        Returns:
            What the replica gets now.
        """
        self.request_whole = True
        if self.request.framing is not Framing.CHUNKED:
            return b""
        lines = [b"%b: %b\r\n" % trailer for trailer in trailers]
        return self._pass_on(b"".join([b"0\r\n", *lines, b"\r\n"]))

    def _pass_on(self, data: bytes) -> bytes:
        if self.state is ExchangeState.SEEKING:
            self._kept.append(data)
            return b""
        if self.repeatable:
            self._keep(data)
        return data

    def _keep(self, data: bytes) -> None:
        self._kept_size += len(data)
        if self._kept_size > REPLAYED:
            self.repeatable = False
            self._kept = []
        else:
            self._kept.append(data)

    def connected(self) -> bytes:
        """There is a connection to a replica.

        Returns:
            What the replica gets now.
        """
        self.become(ExchangeState.ASKED)
        parts, self._kept = self._kept, []
        self._kept_size = 0
        for part in parts:
            if self.repeatable:
                self._keep(part)
        return b"".join([self.request.outgoing, *parts])

    def disconnected(self) -> None:
        """The replica has failed, and another connection is sought; everything is sent again by that."""
        if not self.repeatable:
            raise DefectError("a request is sent again although a part of it was not kept")
        self._collected = []
        self.become(ExchangeState.SEEKING)

    # -- the answer ------------------------------------------------------------------------------------

    def informational(self, head: AnswerHead) -> bytes:
        """The replica has sent a head before the final one, such as 100 or 103.

        Returns:
            What the client gets now.
        """
        if not self.request.http_1_1 or (head.status == 100 and not self.awaits_continue):
            return b""
        if head.status == 100:
            self.awaits_continue = False
        return _lines(head, head.headers)

    def go_on(self) -> bytes:
        """The replica says nothing of the expectation: the client shall send the body (RFC 9110, section
        10.1.1).

        Returns:
            What the client gets now.
        """
        self.awaits_continue = False
        return b"HTTP/1.1 100 Continue\r\n\r\n"

    def answer_head(self, head: AnswerHead, *, last: bool) -> bytes:
        """The head of the final answer has come.

        Args:
            head: As the replica sent it.
            last: Whether the client's connection ends with this answer anyway.

        Returns:
            What the client gets now.

        Raises:
            UpstreamGarbledError: It cannot be an answer to this request.
        """
        self.status = head.status
        if head.status == 101:
            return self._switch(head)
        self.endless = head.endless
        data = self._client_head(head, last)
        if 0 < (head.length or 0) <= COLLECTED and head.framing is Framing.LENGTH:
            self.become(ExchangeState.COLLECTING)
            self._collected = [data]
            return b""
        self.become(ExchangeState.ANSWERING)
        return data

    def _switch(self, head: AnswerHead) -> bytes:
        """Only a protocol that was asked for may be switched to (RFC 9110, section 15.2.2)."""
        asked = [word.strip().lower() for word in self.request.upgrade.split(b",")]
        agreed = [word.strip().lower() for word in head.upgrade.split(b",")]
        if not head.upgrade or not set(agreed) <= set(asked):
            raise UpstreamGarbledError("the replica switched to a protocol that nobody asked for")
        self.become(ExchangeState.TUNNEL)
        self.keeps = False
        return _lines(head, [*head.headers, (b"connection", b"upgrade"), (b"upgrade", head.upgrade)])

    def _client_head(self, head: AnswerHead, last: bool) -> bytes:
        """The head as the client gets it, with the framing that the client understands."""
        headers = with_date(head.headers)
        bodiless = head.framing is Framing.NONE
        if head.length is not None and (head.status == 304 or (head.status >= 200 and head.status != 204)):
            headers = [*headers, (b"content-length", b"%d" % head.length)]
        elif not bodiless and self.request.http_1_1:
            headers = [*headers, (b"transfer-encoding", b"chunked")]
            self._framing = Framing.CHUNKED
        elif not bodiless:
            self._framing = Framing.CLOSE
        if last or self._framing is Framing.CLOSE or self.awaits_continue:
            self.keeps = False
        if not self.keeps:
            headers = [*headers, (b"connection", b"close")]
        elif not self.request.http_1_1:
            headers = [*headers, (b"connection", b"keep-alive")]
        return _lines(head, headers)

    def answer_part(self, data: bytes) -> bytes:
        """A part of the answer's body has come.

        Args:
            data: The part, without its framing.

        Returns:
            What the client gets now.
        """
        if self._framing is Framing.CHUNKED:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self.state is ExchangeState.COLLECTING:
            self._collected.append(data)
            return b""
        return data

    def answer_end(self, trailers: list[Header]) -> bytes:
        """The whole answer has come.

        Args:
            trailers: Headers after its body.

        Returns:
            What the client gets now.
        """
        data = self.collected()
        if self._framing is Framing.CHUNKED:
            lines = [b"%b: %b\r\n" % trailer for trailer in trailers]
            data = b"".join([data, b"0\r\n", *lines, b"\r\n"])
        self.complete = True
        return data

    def collected(self) -> bytes:
        """Collect no longer.

        Returns:
            What the client gets now.
        """
        if self.state is not ExchangeState.COLLECTING:
            return b""
        self.become(ExchangeState.ANSWERING)
        parts, self._collected = self._collected, []
        return b"".join(parts)

    def own_answer(self, answer: Answer, *, last: bool) -> bytes:
        """Answer with something of our own.

        Args:
            answer: What is said.
            last: Whether the client's connection ends with it.

        Returns:
            What the client gets now.
        """
        self.become(ExchangeState.ANSWERING)
        self.status = answer.status
        # HTTP/1.0 would have to be told that the connection goes on (RFC 9112, section 9.3).
        self.keeps = self.keeps and not last and self.request.http_1_1
        return own_answer(answer, close=not self.keeps, head_only=self.request.method == "HEAD")


def own_answer(answer: Answer, *, close: bool, head_only: bool = False) -> bytes:
    """An answer of our own, whole.

    Args:
        answer: What is said.
        close: Whether the connection ends with it.
        head_only: Whether it answers a HEAD request.
    """
    lines = [b"HTTP/1.1 %d %b\r\n" % (answer.status, REASONS.get(answer.status, b""))]
    lines += [b"%b: %b\r\n" % header for header in encode(answer)]
    if close:
        lines.append(b"connection: close\r\n")
    return b"".join([*lines, b"\r\n", b"" if head_only else answer.body])


def _lines(head: AnswerHead, headers: list[Header]) -> bytes:
    lines = [b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason)]
    lines += [b"%b: %b\r\n" % header for header in headers]
    return b"".join([*lines, b"\r\n"])
