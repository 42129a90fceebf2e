"""A connection to a replica without I/O: requests out, answers in, one after the other.

    IDLE ──► ASKED ──► ANSWER ──► IDLE …        ASKED ──► TUNNEL
    any state ──► CLOSED

Nothing is read beyond the present answer: bytes that come after it belong to nothing that was asked for, so
the connection is not used again.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

import httptools

from loadbalancer.errors import DefectError, UpstreamError, UpstreamGarbledError
from loadbalancer.proxy.fast.answer_head import AnswerHead, names_both_lengths, read_answer_head
from loadbalancer.proxy.fast.bodies import (
    BodyFramingError,
    BodyReader,
    ChunkedReader,
    Framing,
    LengthReader,
    UntilCloseReader,
    allowed_trailers,
)
from loadbalancer.proxy.headers import Header

MAX_HEAD = 64 * 1024
"""Bytes of an answer's heads, informational ones included, and of the framing between two parts of its
body."""


class ReplicaState(Enum):
    """How far the present answer is."""

    IDLE = auto()
    """Nothing has been asked."""
    ASKED = auto()
    """A request has been sent, at least in part; its final answer has not begun."""
    ANSWER = auto()
    """The head of the final answer has come, and not all of its body."""
    TUNNEL = auto()
    """Another protocol is spoken: bytes pass as they come."""
    CLOSED = auto()
    """The connection has ended, or is of no use any more."""


_S = ReplicaState

MAY_FOLLOW = {
    _S.IDLE: {_S.ASKED, _S.CLOSED},
    _S.ASKED: {_S.ANSWER, _S.IDLE, _S.TUNNEL, _S.CLOSED},
    _S.ANSWER: {_S.IDLE, _S.CLOSED},
    _S.TUNNEL: {_S.CLOSED},
    _S.CLOSED: {_S.CLOSED},
}
"""Which states may follow which."""


@dataclass(slots=True)
class Answered:
    """What some bytes bring of the present answer, in this order.

    Args:
        informational: Heads that come before the final one (RFC 9110, section 15.2).
        head: Of the final answer.
        body: A part of its body.
        whole: Whether it is whole now.
        trailers: Headers that came after its body.
        error: Why it is none; nothing after it is read.
    """

    informational: list[AnswerHead] = field(default_factory=list)
    head: AnswerHead | None = None
    body: bytes = b""
    whole: bool = False
    trailers: list[Header] = field(default_factory=list)
    error: UpstreamError | None = None


class ReplicaSide:
    """One connection to a replica.

    Args:
        name: Of the replica, for errors.
    """

    __slots__ = ("_body", "_buffer", "_heads", "_method", "_probe", "_reusable", "name", "state")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = ReplicaState.IDLE
        self._method = ""
        self._buffer = b""
        self._heads = 0
        self._body: BodyReader | None = None
        self._reusable = True
        self._probe: httptools.HttpResponseParser | None = None

    def become(self, state: ReplicaState) -> None:
        """Change the state.

        Raises:
            DefectError: That state may not follow.
        """
        if state not in MAY_FOLLOW[self.state]:
            raise DefectError(f"a replica's side cannot go from {self.state.name} to {state.name}")
        self.state = state

    def asked(self, method: str) -> None:
        """A request has been sent.

        Args:
            method: Its method.
        """
        self.become(ReplicaState.ASKED)
        self._method = method
        self._heads = 0

    def receive(self, data: bytes) -> Answered:
        """Take bytes of the connection, in the states ASKED and ANSWER.

        Args:
            data: The next ones.
        """
        answered = Answered()
        try:
            if self.state is ReplicaState.ASKED:
                data = self._read_heads(data, answered)
            if self.state is ReplicaState.ANSWER:
                self._read_body(data, answered)
            elif self.state is ReplicaState.TUNNEL:
                answered.body = data
        except UpstreamError as error:
            answered.error = error
        return answered

    def ended(self) -> bool:
        """The replica has sent everything that it will send.

        Returns:
            Whether that is the end of an answer whose body ends with the connection.
        """
        until_close = self.state is ReplicaState.ANSWER and isinstance(self._body, UntilCloseReader)
        self.become(ReplicaState.CLOSED)
        return until_close

    @property
    def begun(self) -> bool:
        """Whether anything of an answer has come."""
        return bool(self._buffer or self._heads) or self.state is ReplicaState.ANSWER

    def reuse(self) -> bool:
        """The answer is whole and the request was sent whole: be idle if the connection may be used again.

        Returns:
            Whether it may.
        """
        if self._reusable and self.state is ReplicaState.ANSWER:
            self.become(ReplicaState.IDLE)
            return True
        self.become(ReplicaState.CLOSED)
        return False

    # -- within --------------------------------------------------------------------------------------

    def _read_heads(self, data: bytes, answered: Answered) -> bytes:
        """Read informational heads and the final one; return what comes after it."""
        before, self._buffer = self._buffer, b""
        data = before + data if before else data
        known = len(before) if self._probe is not None else 0  # what `quick` has kept was not looked at here
        while data:
            end = data.find(b"\r\n\r\n", max(0, known - 3)) + 4
            if self._heads + max(end, len(data) if end < 4 else 0) > MAX_HEAD:
                raise UpstreamGarbledError(f"{self.name} answered with a head of more than {MAX_HEAD} bytes")
            if end < 4:
                self._check_part(data, known)
                self._buffer = data
                return b""
            self._probe = None
            self._heads += end
            head = read_answer_head(data[:end], self._method, self.name)
            data, known = data[end:], 0
            if head.status >= 200 or head.status == 101:
                answered.head = head
                self._begin(head, answered)
                return data
            answered.informational.append(head)
        return b""

    def _check_part(self, data: bytes, known: int) -> None:
        """See at once that a part of a head begins none."""
        if self._probe is None:
            self._probe = httptools.HttpResponseParser(None)
        try:
            self._probe.feed_data(data[known:])
        except httptools.HttpParserError as error:
            if names_both_lengths(data):
                return  # what llhttp refuses by itself; the whole head is read otherwise
            raise UpstreamGarbledError(f"{self.name} answered something that is not HTTP: {error}") from None

    def _begin(self, head: AnswerHead, answered: Answered) -> None:
        if head.status == 101:
            self.become(ReplicaState.TUNNEL)
            return
        self._reusable = head.keep_alive
        self.become(ReplicaState.ANSWER)
        match head.framing:
            case Framing.CHUNKED:
                self._body = ChunkedReader(MAX_HEAD)
            case Framing.CLOSE:
                self._body = UntilCloseReader()
            case Framing.LENGTH:
                self._body = LengthReader(head.length or 0)
            case Framing.NONE:
                self._body = LengthReader(0)
        answered.whole = self._body.whole

    def _read_body(self, data: bytes, answered: Answered) -> None:
        body = self._body
        if body is None:
            raise DefectError("a body is read without a reader")
        rest = data
        if not body.whole:
            try:
                answered.body, rest = body.read(data)
            except BodyFramingError as error:
                raise UpstreamGarbledError(f"{self.name} answered with broken chunks: {error}") from None
        if body.whole:
            answered.whole = True
            answered.trailers = allowed_trailers(body)
            self._body = LengthReader(0)
        if rest:
            self._reusable = False
