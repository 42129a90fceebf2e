"""How the ASGI lane speaks to replicas: sessions of the HTTP library, and its errors as ours."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler

from loadbalancer.errors import (
    ExhaustedError,
    UpstreamClosedError,
    UpstreamError,
    UpstreamGarbledError,
    UpstreamRefusedError,
    UpstreamStaleError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
    is_own_limit,
)
from loadbalancer.proxy.asgi.replica_websocket import ReplicaWebSocket, keep_refusals
from loadbalancer.proxy.asgi.upstream_connection import UpstreamConnection, UpstreamRequest, was_reused
from loadbalancer.proxy.headers import Header
from loadbalancer.proxy.retry import IDEMPOTENT
from loadbalancer.proxy.router import KEPT_ALIVE
from loadbalancer.routing.upstream import Upstream

MAX_HEADER_LINE = 32 * 1024
"""Bytes of one header line of a replica's answer."""

NOT_INVENTED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""Headers that the HTTP library would add of its own accord."""


FRESH_ENOUGH = 0.25
"""Seconds for which a connection that was just used is open: no server closes idle ones so soon."""


class Kind(Enum):
    """Which connections a request may go on."""

    KEPT = auto()
    """Any that is kept: the request can be sent again if the replica is just closing it."""
    RECENT = auto()
    """One that was used a moment ago: the request cannot be sent again."""
    NEW = auto()
    """Only a new one: a kept connection has just ended under the request."""


class Sessions:
    """All connections to one replica: as many as it takes, nothing added to what is sent.

    Args:
        upstream: The replica; one without a port listens on a Unix socket.
        connect_timeout: Seconds to connect to it.
    """

    def __init__(self, upstream: Upstream, connect_timeout: float) -> None:
        self._upstream = upstream
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout)
        self._sessions: dict[Kind, aiohttp.ClientSession] = {}

    def get(self, kind: Kind) -> aiohttp.ClientSession:
        """The session for a request.

        Args:
            kind: Which connections the request may go on.
        """
        session = self._sessions.get(kind)
        if session is None:
            session = self._sessions[kind] = self._open(kind)
        return session

    async def close(self) -> None:
        """Close all connections."""
        for session in self._sessions.values():
            await session.close()

    async def _tell_ends_apart(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Middleware of the HTTP sessions: tell a stale connection from one that the replica broke.

        The errors are ours, so that the HTTP library does not repeat requests of its own accord.

        Raises:
            UpstreamStaleError: A kept connection ended, or the replica had given it up.
            UpstreamClosedError: A new connection ended.
        """
        name = self._upstream.hostname
        try:
            response = await handler(request)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            kind = UpstreamStaleError if was_reused(request) else UpstreamClosedError
            why = getattr(error, "strerror", None) or "it ended"
            raise kind(f"{name} broke the connection before it had answered: {why}") from error
        given_up = response.status == HTTPStatus.REQUEST_TIMEOUT and was_reused(request) and not request.body
        if given_up and request.method in IDEMPOTENT:
            # RFC 9110, section 15.5.9: the replica was tired of the idle connection; the request is new.
            response.close()
            raise UpstreamStaleError(f"{name} had given up a kept connection: it answered 408")
        return response

    def _open(self, kind: Kind) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=self._connector(kind),
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=NOT_INVENTED,
            max_line_size=MAX_HEADER_LINE,
            max_field_size=MAX_HEADER_LINE,
            request_class=UpstreamRequest,
            ws_response_class=ReplicaWebSocket,
            middlewares=[keep_refusals, self._tell_ends_apart],
        )

    def _connector(self, kind: Kind) -> aiohttp.BaseConnector:
        keep: dict[str, Any]
        match kind:
            case Kind.KEPT:
                keep = {"keepalive_timeout": KEPT_ALIVE}
            case Kind.RECENT:
                keep = {"keepalive_timeout": FRESH_ENOUGH}
            case Kind.NEW:
                keep = {"force_close": True}
        connector = (
            aiohttp.TCPConnector(limit=0, **keep)
            if self._upstream.port
            else aiohttp.UnixConnector(self._upstream.host, limit=0, **keep)
        )
        # The library has no option for it.
        make = partial(UpstreamConnection, asyncio.get_running_loop())
        connector._factory = cast("partial[ResponseHandler]", make)
        return connector


@contextmanager
def as_upstream_errors(upstream: Upstream, connect_timeout: float, timeout: float) -> Iterator[None]:
    """Turn the HTTP library's errors into ours.

    Args:
        upstream: The replica that is spoken to.
        connect_timeout: The session's time-out for connecting, for the message.
        timeout: The time-out of whatever is done within, for the message.

    Raises:
        ExhaustedError: No connection could be opened, which is not the replica's fault.
        UpstreamError: It refused, or broke off, or made no sense, or was silent for too long.
    """
    name = upstream.hostname
    try:
        yield
    except aiohttp.ConnectionTimeoutError:
        raise UpstreamUnreachableError(
            f"{name} accepted no connection within {connect_timeout:g} s"
        ) from None
    except TimeoutError:
        raise UpstreamTimeoutError(f"{name} did not answer within {timeout:g} s") from None
    except aiohttp.ClientConnectorError as error:
        if is_own_limit(error.os_error):
            raise ExhaustedError(f"the load balancer can open no connection: {error.strerror}") from error
        raise UpstreamRefusedError(f"{name} cannot be reached: {error.strerror}") from error
    except aiohttp.ClientPayloadError as error:
        raise UpstreamError(f"{name} broke off in the middle of its answer") from error
    except aiohttp.ClientResponseError as error:
        raise UpstreamGarbledError(f"{name} answered something that is not HTTP: {_kind(error)}") from error
    except (aiohttp.ClientError, ConnectionError) as error:
        why = getattr(error, "strerror", None) or "it ended"
        raise UpstreamClosedError(f"{name} broke the connection before it had answered: {why}") from error


def _kind(error: aiohttp.ClientResponseError) -> str:
    """What the parser found wrong: its first line, for those that follow quote the answer."""
    return (error.message.splitlines() or [""])[0].rstrip(" :")


def text(headers: Sequence[Header]) -> list[tuple[str, str]]:
    """Headers as the HTTP library wants them. It writes UTF-8: a value in Latin-1 changes its encoding."""
    return [(name.decode("ascii"), _decode(value)) for name, value in headers]


def _decode(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
