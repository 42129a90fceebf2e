"""A steady load in an open loop: each request starts at its scheduled time, whether or not others have ended.

In a closed loop clients wait for answers, and a stall shows in few requests. In an open loop it shows in all.
"""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import aiohttp

PATIENCE = 20.0
"""Seconds until a client gives up: longer than any time-out of the load balancer in these tests."""


@dataclass(slots=True)
class Request:
    """The result of one request.

    Args:
        sent: Scheduled start in seconds since the epoch.
        took: Seconds from the scheduled start to the end of the answer.
        outcome: Status of the answer, or name of the error.
    """

    sent: float
    took: float
    outcome: str


@dataclass
class Load:
    """Sends idempotent requests at a fixed rate while an `async with` block lasts.

    Args:
        url: URL of the requests.
        rate: Requests a second.
        requests: Results of the requests that have ended.
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
        """Count the outcomes of the requests whose start is in a span of time, in seconds since the epoch."""
        return Counter(one.outcome for one in self.requests if since <= one.sent < until)
