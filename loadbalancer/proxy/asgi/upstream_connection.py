"""A connection to a replica, and a request on it: what the HTTP library leaves open is settled here.

- An answer that is framed twice is read by its chunks, and its connection is not used again.
- What a replica says unasked closes an idle connection; it is never taken for the answer to a later request.
- An answer is read although the replica has closed the connection in the middle of the request.
- A request that waits for `100 Continue` waits for a while only.
"""

import asyncio
import os
import re
import socket
from enum import Enum, auto
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

CONTINUE_WITHIN = 1.0
"""Seconds that a replica may take to ask for a body that the client holds back; not all replicas know how to
(RFC 9110, section 10.1.1)."""

MAX_HEAD = 256 * 1024
"""Bytes of a head that are held; the HTTP library refuses less."""

_END = re.compile(rb"\r?\n\r?\n")
_INTERIM = re.compile(rb"HTTP/1\.[01] 1(?!01)\d\d\b")
_CODING = re.compile(rb"\ntransfer-encoding[ \t]*:", re.IGNORECASE)
_LENGTH = re.compile(rb"\ncontent-length[ \t]*:[^\n]*(?=\n)", re.IGNORECASE)


class AnswerHeads:
    """Passes on the bytes of one answer, and of those that come before it; pure.

    Of an answer that has Transfer-Encoding, Content-Length is left out (RFC 9112, section 6.3): the parser
    would refuse it.
    """

    def __init__(self) -> None:
        self._held: bytes | None = b""
        """What has come of a head; None when the last head is complete."""
        self.framed_twice = False

    def feed(self, data: bytes) -> bytes:
        """Take bytes as received; returns those that the parser gets now.

        Args:
            data: Some more of the answer.
        """
        if self._held is None:
            return data
        held, passed = self._held + data, b""
        while (end := _END.search(held)) is not None:
            head, held = held[: end.end()], held[end.end() :]
            passed += self._framed_once(head)
            if not _INTERIM.match(head):
                self._held = None
                return passed + held
        if len(held) > MAX_HEAD:
            self._held = None
            return passed + held
        self._held = held
        return passed

    def _framed_once(self, head: bytes) -> bytes:
        if _CODING.search(head) is None or _LENGTH.search(head) is None:
            return head
        self.framed_twice = True
        return _LENGTH.sub(b"", head)


class _Stage(Enum):
    """How far the exchange on a connection is."""

    IDLE = auto()
    """Nothing has been asked; the replica has nothing to say."""
    ASKED = auto()
    ANSWERED = auto()
    """The answer has begun; when its body has ended the connection is idle again."""


class UpstreamConnection(ResponseHandler):
    """The HTTP library's connection, mended."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._stage = _Stage.IDLE
        self._heads = AnswerHeads()
        self.requests = 0
        """Requests that it has carried."""

    def set_response_params(self, **params: Any) -> None:
        """Begin a request."""
        self.requests += 1
        self._stage = _Stage.ASKED
        self._heads = AnswerHeads()
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Read what the replica says."""
        if not data or self._upgraded or self._payload_parser is not None:
            # The library itself calls with nothing, to go on after a pause.
            super().data_received(data)
        elif self._idle():
            self._end()
        else:
            passed = self._heads.feed(data)
            if self._heads.framed_twice:
                self.force_close()
            if passed:
                super().data_received(passed)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Take the head of an answer from the parser."""
        message, _ = data
        if self._stage is _Stage.ANSWERED:
            self._end()  # a second answer to one request
            return
        if message.code >= 200 or message.code == 101:
            self._stage = _Stage.ANSWERED
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Note that the connection has failed, once all is read that came before."""
        if isinstance(exc, (OSError, aiohttp.ClientConnectionError)):
            self._read_the_rest()
        super().set_exception(exc, *cause)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Note that the connection has ended, once all is read that came before."""
        if exc is not None:
            self._read_the_rest()
        super().connection_lost(exc)

    def _idle(self) -> bool:
        if self._stage is _Stage.ANSWERED:
            return self._payload is not None and self._payload.is_eof()
        return self._stage is _Stage.IDLE

    def _end(self) -> None:
        self.force_close()
        if self.transport is not None:
            self.transport.close()

    def _read_the_rest(self) -> None:
        """Read what the system still has of an early answer.

        A replica that refuses a body answers and closes (RFC 9112, section 9.6). Writing on then fails before
        the event loop has read the answer, and it reads nothing afterwards.
        """
        if self._stage is not _Stage.ASKED or self.transport is None:
            return
        connection = self.transport.get_extra_info("socket")
        if connection is None or connection.fileno() < 0:
            return
        with socket.socket(fileno=os.dup(connection.fileno())) as rest:
            rest.setblocking(False)
            try:
                while piece := rest.recv(1 << 16):
                    self.data_received(piece)
            except OSError:
                return  # there is no more


class UpstreamRequest(aiohttp.ClientRequest):
    """The HTTP library's request; it knows whether its connection was used before."""

    reused = False

    def update_expect_continue(self, expect: bool = False) -> None:
        """Wait for `100 Continue`, but not for ever."""
        super().update_expect_continue(expect)
        if self._continue is not None:
            self.loop.call_later(CONTINUE_WITHIN, _go_on, self._continue)

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        """Write the request."""
        self.reused = conn.protocol.requests > 1
        return await super().send(conn)


def was_reused(request: aiohttp.ClientRequest) -> bool:
    """Whether a request went on a connection that had been used before.

    Args:
        request: That was sent, or was to be.
    """
    return isinstance(request, UpstreamRequest) and request.reused


def _go_on(waiting: "asyncio.Future[bool]") -> None:
    if not waiting.done():
        waiting.set_result(True)
