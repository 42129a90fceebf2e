"""Heartbeats: one HTTP request that is sent to each replica at a fixed interval.

Any answer below 500 is a good heartbeat, so that servers without the path `/heartbeat` (404) and servers that
only speak WebSocket (426) count as alive. A time-out, a refused or broken connection and an answer of 500 or
above are misses. A heartbeat that the load balancer cannot send, for lack of files or ports of its own, is
neither. Each replica has a loop of its own, so a slow replica does not delay the heartbeats of the others.
"""

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp
import structlog
from yarl import URL

from loadbalancer.errors import is_own_limit
from loadbalancer.routing.upstream import authority

log = structlog.get_logger("loadbalancer.fleet")


@dataclass(frozen=True, slots=True)
class Miss:
    """A missed heartbeat.

    Args:
        reason: Why it was missed, in words.
        timed_out: Whether the replica gave no answer in time.
    """

    reason: str
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Unsent:
    """A heartbeat that the load balancer could not send. It says nothing about the replica.

    Args:
        reason: Why it could not be sent, in words.
    """

    reason: str


Heartbeat = Miss | Unsent | None
"""The outcome of a heartbeat. None: a good one."""


class Prober:
    """Sends heartbeats, each on a new connection, because new clients need one too.

    Args:
        path: Path and query of the heartbeat.
        timeout: Seconds after which an unanswered heartbeat is missed.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "loadbalancer-heartbeat"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def probe(self, host: str, port: int) -> Heartbeat:
        """Send one heartbeat.

        Args:
            host: Address of the replica.
            port: Port of the replica.
        """
        if self._session is None:
            raise RuntimeError("a Prober is used inside `async with`")
        url = URL(f"http://{authority(host, port)}{self._path}", encoded=True)
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                return None if response.status < 500 else Miss(f"heartbeat answered {response.status}")
        except TimeoutError:
            return Miss(f"no heartbeat within {self._timeout:g} s", timed_out=True)
        except (aiohttp.ClientError, OSError) as error:
            cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
            if isinstance(cause, OSError) and is_own_limit(cause):
                reason = f"no heartbeat could be sent: {cause.strerror}"
                log.warning("heartbeat not sent", reason=reason)
                return Unsent(reason)
            if isinstance(error, aiohttp.ClientConnectorError):
                return Miss("heartbeat refused")
            return Miss(f"heartbeat broken: {str(error) or type(error).__name__}")


class Ticker:
    """Ticks at a fixed rate. A late tick does not delay the next ones; ticks that were missed are skipped.

    Args:
        interval: Seconds between two ticks.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._last = asyncio.get_running_loop().time()

    async def tick(self, interruption: asyncio.Event | None = None) -> bool:
        """Return at the next tick, or earlier when the interruption is set.

        Args:
            interruption: The event that interrupts; None: no interruption.

        Returns:
            True at a tick, False at an interruption.
        """
        upcoming = max(self._last + self._interval, asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout_at(upcoming):
                await (interruption or asyncio.Event()).wait()
            return False
        except TimeoutError:
            self._last = upcoming
            return True
