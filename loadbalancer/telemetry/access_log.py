"""The access log: one line for each request, written in batches.

A JSON line is the same as one of structlog's JSON renderer. This module formats it, because a busy lane
writes tens of thousands of lines a second, and structlog takes ten times as long. With `--log-format text`,
structlog writes the lines.
"""

import asyncio
import logging
import sys
import time
from json.encoder import encode_basestring_ascii as quoted

import structlog

MAX_DELAY = 0.1
"""Maximum seconds that a line waits to be written."""

MAX_BATCH = 256
"""Maximum number of lines in a batch."""


class AccessLog:
    """Logs requests in the configured format, if the log level is `info` or lower."""

    def __init__(self) -> None:
        self._log = structlog.get_logger("loadbalancer.access").bind()
        self._enabled = bool(self._log.is_enabled_for(logging.INFO))
        renderer = structlog.get_config()["processors"][-1]
        self._json = isinstance(renderer, structlog.processors.JSONRenderer)
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
            method: The method of the request.
            target: The path and the query.
            client: The address of the client.
            request_id: The id of the request.
            status: The status of the answer.
            complete: Whether the whole answer was passed to the client's connection.
            replica: The hostname of the last replica that the request was sent to; empty: none.
            seconds: The duration of the request.
        """
        if not self._enabled:
            return
        if not self._json:
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
        self._collect(
            f'{{"method": "{method}", "target": {quoted(target)}, "status": {status}, '
            f'"complete": {"true" if complete else "false"}, '
            f'"replica": {quoted(replica) if replica else "null"}, '
            f'"seconds": {seconds:.6f}, "client": "{client}", "request_id": {quoted(request_id)}, '
            f'"event": "request", "level": "info", "timestamp": "{self._now()}"}}\n'
        )

    def flush(self) -> None:
        """Write the lines of the current batch."""
        lines, self._lines = self._lines, []
        if lines:
            sys.stderr.write("".join(lines))
            sys.stderr.flush()

    def _collect(self, line: str) -> None:
        """Add a line to the batch; the batch is written when it is full, or after `MAX_DELAY` seconds."""
        self._lines.append(line)
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_later(MAX_DELAY, self.flush)
        elif len(self._lines) >= MAX_BATCH:
            self.flush()

    def _now(self) -> str:
        """Format the time in UTC (ISO 8601). The part up to the second is cached."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._prefix}.{int((now - second) * 1e6):06d}Z"
