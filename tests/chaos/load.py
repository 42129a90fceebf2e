"""A steady load in an open loop: requests start when they are due, whatever becomes of those before.

So a stall is not hidden by clients that wait, as it is when each sends its next request after an answer.
"""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import aiohttp

PATIENCE = 20.0
"""Seconds after which a client gives up: longer than anything that the load balancer may take."""


@dataclass(slots=True)
class Request:
    """What became of one request.

    Args:
        sent: When it was due, in seconds since the epoch.
        took: Seconds until its answer was complete.
        outcome: `200`, another status, or the name of an error.
    """

    sent: float
    took: float
    outcome: str


@dataclass
class Load:
    """Sends idempotent requests at a fixed rate while `async with` lasts.

    Args:
        url: What is asked for.
        rate: Requests a second.
    """

    url: str
    rate: float
    requests: list[Request] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=PATIENCE)
        )
        self._in_flight: set[asyncio.Task[None]] = set()
        self._pacing = asyncio.create_task(self._pace())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pacing.cancel()
        await asyncio.gather(self._pacing, return_exceptions=True)
        await asyncio.gather(*self._in_flight)
        await self._session.close()

    async def _pace(self) -> None:
        begun = time.time()
        for number in range(10_000_000):
            due = begun + number / self.rate
            await asyncio.sleep(max(0.0, due - time.time()))
            task = asyncio.create_task(self._send(due))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)

    async def _send(self, due: float) -> None:
        try:
            async with self._session.get(self.url) as answer:
                await answer.read()
                outcome = str(answer.status)
        except (aiohttp.ClientError, OSError) as error:
            outcome = type(error).__name__
        self.requests.append(Request(due, time.time() - due, outcome))

    def outcomes(self, since: float = 0.0, until: float = float("inf")) -> Counter[str]:
        """Count the outcomes of the requests that were sent in a span of time."""
        return Counter(one.outcome for one in self.requests if since <= one.sent < until)
