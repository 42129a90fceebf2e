"""How the ASGI lane speaks to replicas: one HTTP session, and its errors told in our own words."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import aiohttp
import structlog

from loadbalancer.errors import (
    ExhaustedError,
    UpstreamClosedError,
    UpstreamError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
    is_own_limit,
)
from loadbalancer.proxy.headers import Header
from loadbalancer.proxy.router import KEPT_ALIVE
from loadbalancer.routing.upstream import Upstream

MAX_HEADER_LINE = 32 * 1024
"""Bytes of one header line of a replica's answer."""

NOT_INVENTED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""Headers that the HTTP library would add of its own accord."""

log = structlog.get_logger("loadbalancer.proxy")


def open_session(
    upstream: Upstream, connect_timeout: float, middlewares: Sequence[aiohttp.ClientMiddlewareType] = ()
) -> aiohttp.ClientSession:
    """The session that all requests to a replica share: as many connections as it takes, nothing added.

    Args:
        upstream: The replica; one without a port listens on a Unix socket.
        connect_timeout: Seconds to connect to a replica.
        middlewares: Steps that each request passes through.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_ALIVE)
        if upstream.port
        else aiohttp.UnixConnector(upstream.host, limit=0, keepalive_timeout=KEPT_ALIVE),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=NOT_INVENTED,
        max_line_size=MAX_HEADER_LINE,
        max_field_size=MAX_HEADER_LINE,
        middlewares=middlewares,
    )


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
        log.debug("no HTTP", replica=name, reason=repr(error))
        raise UpstreamError(f"{name} answered something that is not HTTP") from error
    except (aiohttp.ClientError, ConnectionError) as error:
        why = getattr(error, "strerror", None) or "it ended"
        raise UpstreamClosedError(f"{name} broke the connection before it had answered: {why}") from error


def text(headers: Sequence[Header]) -> list[tuple[str, str]]:
    """Headers as the HTTP library wants them. It writes UTF-8: a value in Latin-1 changes its encoding."""
    return [(name.decode("ascii"), _decode(value)) for name, value in headers]


def _decode(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
