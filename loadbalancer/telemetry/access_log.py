"""The access log: a line for each request, collected and written many at a time.

The lines are those that the log's own JSON renderer makes. They are formatted here because a busy lane writes
tens of thousands a second, and this costs a tenth as much. On a terminal the log's own renderer is used.
"""

import asyncio
import logging
import sys
import time
from json.encoder import encode_basestring_ascii as quoted

import structlog

FLUSHED_EVERY = 0.1
"""Seconds for which a line may wait."""

FLUSHED_AT = 256
"""Lines that are written together at the most."""


class AccessLog:
    """Logs requests, in the form and from the level that the log was configured for."""

    def __init__(self) -> None:
        self._log = structlog.get_logger("loadbalancer.access").bind()
        self._wanted = bool(self._log.is_enabled_for(logging.INFO))
        last = structlog.get_config()["processors"][-1]
        self._collects = isinstance(last, structlog.processors.JSONRenderer)
        self._lines: list[str] = []
        self._second = 0
        self._prefix = ""

    def write(
        self,
        method: str,
        target: str,
        client: str,
        request_id: str,
        *,
        status: int,
        complete: bool,
        replica: str,
        seconds: float,
    ) -> None:
        """Log one request.

        Args:
            method: As sent.
            target: Path and query.
            client: Its address.
            request_id: Its id.
            status: Of the answer.
            complete: Whether the whole answer has been handed over.
            replica: The name of the replica that had it last; empty: none.
            seconds: How long it took.
        """
        if not self._wanted:
            return
        if not self._collects:
            self._log.info(
                "request",
                method=method,
                target=target,
                status=status,
                complete=complete,
                replica=replica or None,
                seconds=round(seconds, 6),
                client=client,
                request_id=request_id,
            )
            return
        self._lines.append(
            f'{{"method": "{method}", "target": {quoted(target)}, "status": {status}, '
            f'"complete": {"true" if complete else "false"}, '
            f'"replica": {quoted(replica) if replica else "null"}, '
            f'"seconds": {seconds:.6f}, "client": "{client}", "request_id": {quoted(request_id)}, '
            f'"event": "request", "level": "info", "timestamp": "{self._now()}"}}\n'
        )
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_later(FLUSHED_EVERY, self.flush)
        elif len(self._lines) >= FLUSHED_AT:
            self.flush()

    def flush(self) -> None:
        """Write the lines that wait."""
        lines, self._lines = self._lines, []
        if lines:
            sys.stderr.write("".join(lines))
            sys.stderr.flush()

    def _now(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._prefix}.{int((now - second) * 1e6):06d}Z"
