"""Runs the real load balancer (`python -m loadbalancer serve`), and waits for events in its log."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

PATIENCE = 30.0
"""Seconds until a test that waits for an event fails. Events take much less time as a rule."""


def free_port() -> int:
    """A port on 127.0.0.1 on which no socket listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def replica(name: str) -> str:
    """The command that starts a server of `tests/replicas`."""
    return f"python {os.path.join(os.path.dirname(__file__), 'replicas', name)}.py"


@dataclass(frozen=True)
class Reply:
    """An answer with its complete body."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed as JSON."""
        return json.loads(self.body)


def request(
    port: int,
    method: str,
    path: str,
    body: bytes | Any = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = PATIENCE,
) -> Reply:
    """Send a request on a new connection, and return the answer. A body that is not bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, dict(headers or {}))
        answer = connection.getresponse()
        return Reply(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


class LoadBalancer:
    """A load balancer in its own process, which runs while a `with` block lasts.

    Args:
        options: Options of `serve`; the port and the log format are added.
        replicas: Number of replicas; `with` waits until all are up.
        env: Variables to add to the environment.
    """

    def __init__(self, *options: str, replicas: int = 3, env: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self.records: list[dict[str, Any]] = []
        self._replicas = replicas
        self._news = threading.Condition()
        """Notified of each new record, and of the end of the log; guards both."""
        self._ended = False
        self._argv = [
            *(sys.executable, "-m", "loadbalancer", "serve"),
            *("--port", str(self.port), "--replicas", str(replicas), "--log-format", "json", *options),
        ]
        self._env = {**os.environ, **(env or {})}

    def wrap(self, *argv: str) -> None:
        """Start the load balancer through another program, whose command line is given."""
        self._argv = [*argv, *self._argv]

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Start the load balancer, also again after `kill`, and wait until its replicas are up."""
        mark = self.mark()
        self._ended = False
        self.process = subprocess.Popen(self._argv, stderr=subprocess.PIPE, env=self._env)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.wait_for("serving", after=mark)
            if self._replicas:
                self.wait_for("replica up", self._replicas, after=mark)
        except BaseException:
            self.kill()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.process.poll() is None:
                assert self.stop() == 0, "the load balancer ends with status 0"
        finally:
            self.kill()

    def stop(self) -> int:
        """Send SIGTERM, wait for the end, and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """Send SIGKILL, and wait for the end of the process and of its log."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)

    def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send a request to the load balancer."""
        return request(self.port, method, path, body, headers)

    def members(self) -> list[str]:
        """The hostnames in `/rep`."""
        names: list[str] = self.call("GET", "/rep").json["message"]["replicas"]
        return names

    def state(self) -> dict[str, dict[str, Any]]:
        """`/lb/replicas`, by hostname."""
        replicas = self.call("GET", "/lb/replicas").json["message"]["replicas"]
        return {replica["hostname"]: replica for replica in replicas}

    def pid(self, hostname: str) -> int:
        """The process id of a replica."""
        return int(self.state()[hostname]["id"])

    def mark(self) -> int:
        """The current end of the log, for `wait_for` to search from."""
        with self._news:
            return len(self.records)

    def wait_for(self, event: str, count: int = 1, after: int = 0, **fields: Any) -> dict[str, Any]:
        """Wait until the log has a number of matching records, and return the last of them.

        Args:
            event: Event of the records.
            count: Number of records to wait for.
            after: Mark in the log; earlier records are ignored.
            fields: Further values that a record must have.
        """

        def matching() -> list[dict[str, Any]]:
            wanted = {"event": event, **fields}
            return [record for record in self.records[after:] if wanted.items() <= record.items()]

        with self._news:
            self._news.wait_for(lambda: len(matching()) >= count or self._ended, PATIENCE)
            found = matching()
        assert len(found) >= count, (
            f"no {event!r} {fields} ({len(found)} of {count}) in: {self.records[after:]}"
        )
        return found[count - 1]

    def _read(self) -> None:
        """Append the records of the log, until it ends."""
        assert self.process.stderr is not None
        with self.process.stderr as log:
            for line in log:
                record = json.loads(line) if line.startswith(b"{") else {"event": line.decode()}
                with self._news:
                    self.records.append(record)
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


def eventually(check: Callable[[], bool], expectation: str) -> None:
    """Wait until a check is true, by polling: for states that no event announces.

    Args:
        check: Returns whether the state is reached.
        expectation: Description of the state, for the error.
    """
    deadline = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < deadline, f"never happened: {expectation}"
        threading.Event().wait(0.02)
