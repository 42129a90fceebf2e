"""The end that signals ask for, and the limits that it sets to work that is under way."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""The signals that end the load balancer."""

T = TypeVar("T")

log = structlog.get_logger("loadbalancer")


@dataclass(eq=False)
class _Limit:
    """The time limit of one piece of work.

    Args:
        patience: Seconds that the work has after the first signal; None: until the second signal.
    """

    patience: float | None
    timeout: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))


class Shutdown:
    """The end that SIGTERM and SIGINT ask for: the first signal to stop, a second one to hurry.

    It handles SIGHUP as well, whose default action would end the program. Without a certificate to read
    again, that signal changes nothing.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()
        self.on_hangup: Callable[[], object] = _ignore_hangup
        """Called at SIGHUP."""
        self.on_hurry: Callable[[], None] | None = None
        """Called at the second signal."""
        self._limits: set[_Limit] = set()
        self._asked_at = 0.0
        self._loop = asyncio.get_running_loop()
        for number in SIGNALS:
            self._loop.add_signal_handler(number, self._signalled)
        self._loop.add_signal_handler(signal.SIGHUP, lambda: self.on_hangup())

    def close(self) -> None:
        """Ignore the signals from now on, because the end that they ask for has come.

        Their default action would end the process with another status while the interpreter shuts down.
        They are blocked in between, so that no signal meets that action.
        """
        handled = (*SIGNALS, signal.SIGHUP)
        signal.pthread_sigmask(signal.SIG_BLOCK, handled)
        for number in handled:
            self._loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)

    async def unless_hurried(self, work: Awaitable[T]) -> T | None:
        """Wait for work, and cancel it when there is a hurry.

        Returns:
            The result of the work; None if it was cancelled.
        """
        return await self._limited(work, None)

    async def unless_out_of_time(self, work: Awaitable[T], patience: float) -> T | None:
        """Wait for work, and cancel it when its time is up or there is a hurry.

        Args:
            work: The work.
            patience: Seconds that the work has after the first signal.

        Returns:
            The result of the work; None if it was cancelled.
        """
        return await self._limited(work, patience)

    async def _limited(self, work: Awaitable[T], patience: float | None) -> T | None:
        limit = _Limit(patience)
        try:
            async with self._registered(limit):
                return await work
        except TimeoutError:
            if not limit.timeout.expired():
                raise
            return None

    @asynccontextmanager
    async def _registered(self, limit: _Limit) -> AsyncIterator[None]:
        async with limit.timeout:
            self._limits.add(limit)
            try:
                self._apply(limit)
                yield
            finally:
                self._limits.remove(limit)

    def _apply(self, limit: _Limit) -> None:
        """Set the end of a limit, as far as the signals have decided it."""
        if limit.timeout.expired():
            return
        if self.hurried.is_set():
            limit.timeout.reschedule(self._loop.time())
        elif self.asked.is_set() and limit.patience is not None:
            limit.timeout.reschedule(self._asked_at + limit.patience)

    def _signalled(self) -> None:
        if not self.asked.is_set():
            self._asked_at = self._loop.time()
            self.asked.set()
        elif not self.hurried.is_set():
            self.hurried.set()
            if self.on_hurry is not None:
                self.on_hurry()
        for limit in self._limits:
            self._apply(limit)


def _ignore_hangup() -> None:
    log.warning("SIGHUP ignored", reason="there is no certificate to read again")
