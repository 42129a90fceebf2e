"""Keeping the books of requests: metrics, and the access log if it is wanted. Shared by all lanes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from loadbalancer.proxy.request import RequestHead
from loadbalancer.telemetry.access_log import AccessLog
from loadbalancer.telemetry.metrics import Metrics

CLIENT_GONE = 499
"""nginx's number for a client that went away before its answer began."""


class Outcome(Protocol):
    """What has become of a request."""

    @property
    def replica(self) -> str:
        """Who had it last; empty: nobody was reached."""

    @property
    def status(self) -> int:
        """Of its answer."""

    @property
    def complete(self) -> bool:
        """Whether the whole answer has been handed over."""


@dataclass(slots=True)
class Entry:
    """What becomes of one request; the lane fills it in as it learns it."""

    replica: str = ""
    status: int = CLIENT_GONE
    complete: bool = False
    """Whether the whole answer has been handed over."""


class Accounting:
    """Counts requests and logs them.

    Args:
        metrics: Where to count.
        access_log: Whether to log each request.
    """

    def __init__(self, metrics: Metrics, *, access_log: bool) -> None:
        self.metrics = metrics
        self.access_log = AccessLog() if access_log else None

    def begin(self) -> None:
        """Count a request that has come."""
        self.metrics.in_flight += 1

    def refused(self, status: int) -> None:
        """Count what was refused before it was a request.

        Args:
            status: Of the answer.
        """
        self.metrics.count("", status, 0.0)

    def end(self, describe: Callable[[], RequestHead], entry: Outcome, seconds: float) -> None:
        """Count and log a request that has ended.

        Args:
            describe: Says what was asked for, if that is to be logged.
            entry: What became of it.
            seconds: How long it took.
        """
        self.metrics.in_flight -= 1
        self.metrics.count(entry.replica, entry.status, seconds)
        if self.access_log is not None:
            head = describe()
            self.access_log.write(
                head.method,
                head.target,
                head.client,
                head.request_id,
                status=entry.status,
                complete=entry.complete,
                replica=entry.replica,
                seconds=seconds,
            )

    def close(self) -> None:
        """Nothing more is counted: write what waits to be written."""
        if self.access_log is not None:
            self.access_log.flush()

    @contextmanager
    def request(self, head: RequestHead) -> Iterator[Entry]:
        """Keep an entry for as long as a request takes.

        Args:
            head: The request.
        """
        entry = Entry()
        began = time.perf_counter()
        self.begin()
        try:
            yield entry
        finally:
            self.end(lambda: head, entry, time.perf_counter() - began)
