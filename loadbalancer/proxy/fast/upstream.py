"""The replica's side: connections that are kept, and the answers that come over them."""

import asyncio
from typing import TYPE_CHECKING

import httptools

from loadbalancer.errors import UpstreamClosedError, UpstreamError, UpstreamStaleError
from loadbalancer.proxy.fast.answering import AnswerHead, Framing, KnownAnswer
from loadbalancer.proxy.headers import Header

if TYPE_CHECKING:
    from loadbalancer.proxy.fast.exchange import Exchange
    from loadbalancer.proxy.fast.pool import Pool
    from loadbalancer.proxy.fast.tunnel import Tunnel

MAX_HEAD = 64 * 1024
"""Bytes of an answer's line and headers together."""

KNOWN_HEAD = 2048
"""Bytes of the longest head of an answer that is known again."""


class UpstreamConnection(asyncio.Protocol):
    """A connection to a replica. It serves one exchange at a time and is idle between two.

    Args:
        pool: Where it belongs.
    """

    __slots__ = (
        "_body_size",
        "_ended",
        "_fed",
        "_headers",
        "_held",
        "_in_body",
        "_messages",
        "_parser",
        "_reason",
        "exchange",
        "idle_since",
        "pool",
        "transport",
        "tunnel",
        "used",
    )

    def __init__(self, pool: "Pool") -> None:
        self.pool = pool
        self.transport: asyncio.Transport
        self.exchange: Exchange | None = None
        self.used = False
        """Whether it has carried a whole exchange before: then its end may just be the replica tidying up."""
        self.tunnel: Tunnel | None = None
        """What passes bytes on, when another protocol is spoken over it."""
        self.idle_since = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[Header] = []
        self._reason = b""
        self._fed = 0
        self._in_body = False
        self._ended = False
        self._held = False
        self._messages = 0
        self._body_size = 0

    # -- asyncio.Protocol ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self.transport.abort()  # nobody has asked for anything
            return
        if self.tunnel is not None:
            self.tunnel.from_replica(data)
            return
        boundary = not self._fed and not self._in_body
        if boundary:
            end = data.find(b"\r\n\r\n") + 4
            known = self.pool.known.get(data[:end])
            if known is not None and len(data) - end == known.length and exchange.method != "HEAD":
                exchange.on_whole_answer(known, data[end:])
                self._finish(whole=True)
                return
        if not self._in_body:
            self._fed += len(data)
            self._messages = self._body_size = 0
        client = exchange.client
        client.cork()  # what one packet brings is sent on in one
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ended = False
            exchange.switched(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self.failed(cause if isinstance(cause, UpstreamError) else UpstreamError(f"failed: {cause!r}"))
        except httptools.HttpParserError:
            if self._ended:
                exchange.keep_upstream = False  # what comes after the answer is nobody's
            else:
                self.failed(UpstreamError(f"{self.pool.name} answered something that is not HTTP"))
        else:
            if not self._in_body and self._fed > MAX_HEAD:
                self.failed(
                    UpstreamError(f"{self.pool.name} answered with a head of more than {MAX_HEAD} bytes")
                )
        if self._ended:
            if boundary and exchange.answer_head is not None:
                self._remember(data, end, exchange, exchange.answer_head)
            self._finish()
        client.uncork()

    def eof_received(self) -> bool:
        if self.tunnel is not None and self.exchange is not None:
            self.tunnel.replica_has_no_more()
            return True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.pool.forget(self)
        exchange = self.exchange
        if exchange is None:
            return
        if exchange.reads_until_close and error is None:
            self._ended = True
            self._finish()
            return
        self.exchange = None
        if self.tunnel is not None:
            self.tunnel.ended(error)
            return
        why = getattr(error, "strerror", None) or "it ended"
        name = self.pool.name
        if exchange.answering:
            exchange.broke(UpstreamError(f"{name} broke off in the middle of its answer"))
        else:
            kind = UpstreamStaleError if self.used else UpstreamClosedError
            exchange.broke(kind(f"{name} broke the connection before it had answered: {why}"))

    def pause_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.client_must_wait(True)

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.client_must_wait(False)

    # -- httptools ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._messages += 1
        self._headers = []
        self._reason = b""
        if self._ended and self.exchange is not None:
            self.exchange.keep_upstream = False  # an answer to nothing: it must not meet the next request

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._ended:
            return
        if self._in_body:
            if self.exchange is not None:
                self.exchange.on_trailer(name, value)
        else:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        exchange, parser = self.exchange, self._parser
        if exchange is None or self._ended:
            return
        status = parser.get_status_code()
        if status < 100:
            raise UpstreamError(f"{self.pool.name} answered with the status {status}, which there is not")
        if status < 200 and status != 101:
            exchange.on_informational(status, self._reason, self._headers)
            self._fed = 0
            return
        self._in_body = True
        exchange.on_answer(status, self._reason, self._headers)
        if exchange.method == "HEAD" and status != 101:
            # llhttp does not know that it was asked with HEAD, and would wait for a body.
            self._ended = True
            exchange.keep_upstream = parser.should_keep_alive()
            self._parser = httptools.HttpResponseParser(self)

    def on_body(self, data: bytes) -> None:
        if self._ended:
            if self.exchange is not None:
                self.exchange.keep_upstream = False  # a body where there is none to be
        elif self.exchange is not None:
            self._body_size += len(data)
            self.exchange.on_answer_body(data)

    def on_message_complete(self) -> None:
        if not self._in_body or self._ended:
            return  # an informational answer
        self._ended = True
        if self.exchange is not None:
            self.exchange.keep_upstream = self._parser.should_keep_alive()

    def hold(self, held: bool) -> None:
        """Read no more for now, or read on."""
        if held is not self._held:
            self._held = held
            if held:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    # -- within --------------------------------------------------------------------------------------

    def failed(self, error: UpstreamError) -> None:
        """The answer makes no sense, or comes too late: the connection is of no use any more."""
        exchange, self.exchange = self.exchange, None
        self._ended = False
        self.transport.abort()
        if exchange is not None:
            exchange.broke(error)

    def _remember(self, data: bytes, end: int, exchange: "Exchange", head: AnswerHead) -> None:
        """Know the head of this answer again, if the packet is that, its body, and nothing else."""
        alone = self._messages == 1 and end + self._body_size == len(data)
        if alone and head.framing is Framing.LENGTH and end <= KNOWN_HEAD:
            self.pool.remember(
                data[:end],
                KnownAnswer(exchange.status, b"".join(head.lines), len(data) - end, exchange.keep_upstream),
            )

    def _finish(self, *, whole: bool = False) -> None:
        """The answer is complete: the connection is free, or ends."""
        exchange, self.exchange = self.exchange, None
        self._ended = self._in_body = False
        self._fed = 0
        self.used = True
        if exchange is None:
            return
        if exchange.keep_upstream and exchange.request_sent and not self.transport.is_closing():
            if self._held:
                self.hold(False)
            self.pool.give_back(self)
        else:
            self.transport.close()
        if whole:
            exchange.done()
        else:
            exchange.on_answer_end()
