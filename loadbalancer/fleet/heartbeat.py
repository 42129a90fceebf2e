"""Heartbeats: one question, asked of each replica again and again — do you still answer?

Any answer below 500 is a good heartbeat, so that servers that know nothing of `/heartbeat` (404) or
serve only WebSockets (426) count as alive; a time-out, a refused or broken connection and a 5xx are
misses. Every replica has its own loop, so a slow one delays nobody else's.
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
        reason: Why, in words.
        timed_out: Whether there was no answer at all, neither good nor bad, in time.
    """

    reason: str
    timed_out: bool = False


class Prober:
    """Asks replicas for heartbeats, each on a fresh connection, as a new client would come.

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

    async def probe(self, host: str, port: int) -> Miss | None:
        """Ask once.

        Args:
            host: Address of the replica.
            port: Its port.

        Returns:
            None when the heartbeat was good.
        """
        if self._session is None:
            raise RuntimeError("a Prober is used inside `async with`")
        url = URL(f"http://{authority(host, port)}{self._path}", encoded=True)
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                return None if response.status < 500 else Miss(f"heartbeat answered {response.status}")
        except TimeoutError:
            return Miss(f"no heartbeat within {self._timeout:g} s", timed_out=True)
        except aiohttp.ClientConnectorError as error:
            if is_own_limit(error.os_error):
                log.warning("no heartbeat could be sent", reason=error.strerror)
                return None  # which says nothing of the replica
            return Miss("heartbeat refused")
        except (aiohttp.ClientError, ConnectionError) as error:
            return Miss(f"heartbeat broken: {str(error) or type(error).__name__}")


class Ticker:
    """Ticks at a fixed rate: a late tick does not delay those after it, and missed ticks are left out.

    Args:
        interval: Seconds between two ticks.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._last = asyncio.get_running_loop().time()

    async def tick(self, interruption: asyncio.Event | None = None) -> bool:
        """Return at the next tick, or at an interruption before that.

        Args:
            interruption: Interrupts when it is set.

        Returns:
            Whether it was a tick.
        """
        upcoming = max(self._last + self._interval, asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout_at(upcoming):
                await (interruption or asyncio.Event()).wait()
            return False
        except TimeoutError:
            self._last = upcoming
            return True
