"""Runs the real load balancer, `python -m loadbalancer serve`, and waits for what it says in its log."""

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
"""Seconds after which something that should have happened has not: a bound, not an expectation."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def replica(name: str) -> str:
    """The command of one of the servers in `tests/replicas`."""
    return f"python {os.path.join(os.path.dirname(__file__), 'replicas', name)}.py"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(
    port: int,
    method: str,
    path: str,
    body: bytes | Any = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = PATIENCE,
) -> Reply:
    """One request on a connection of its own; anything but bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, dict(headers or {}))
        answer = connection.getresponse()
        return Reply(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


class LoadBalancer:
    """A load balancer in a process of its own, for as long as a `with` block lasts.

    Args:
        options: Of `serve`; the port is added.
        replicas: How many to begin with; `with` returns when they are up.
        env: What to add to the environment.
    """

    def __init__(self, *options: str, replicas: int = 3, env: Mapping[str, str] | None = None) -> None:
        self.port = free_port()
        self.records: list[dict[str, Any]] = []
        self._replicas = replicas
        self._news = threading.Condition()
        self._ended = False
        self._argv = [
            *(sys.executable, "-m", "loadbalancer", "serve"),
            *("--port", str(self.port), "--replicas", str(replicas), "--log-format", "json", *options),
        ]
        self._env = {**os.environ, **(env or {})}

    def wrap(self, *argv: str) -> None:
        """Have another program start it."""
        self._argv = [*argv, *self._argv]

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Start it, or start it again after `kill`, and wait until its replicas are up."""
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
                assert self.stop() == 0, "it ends in good order"
        finally:
            self.kill()

    def stop(self) -> int:
        """Send SIGTERM and wait for the end."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """Send SIGKILL."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(PATIENCE)

    def call(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        return request(self.port, method, path, body, headers)

    def members(self) -> list[str]:
        names: list[str] = self.call("GET", "/rep").json["message"]["replicas"]
        return names

    def state(self) -> dict[str, dict[str, Any]]:
        """`/lb/replicas`, by hostname."""
        replicas = self.call("GET", "/lb/replicas").json["message"]["replicas"]
        return {replica["hostname"]: replica for replica in replicas}

    def pid(self, hostname: str) -> int:
        return int(self.state()[hostname]["id"])

    def mark(self) -> int:
        """A place in the log, after which to look for what comes."""
        with self._news:
            return len(self.records)

    def wait_for(self, event: str, count: int = 1, after: int = 0, **fields: Any) -> dict[str, Any]:
        """Wait until the log has as many records of an event; return the last of them."""

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


def eventually(check: Callable[[], bool], what: str) -> None:
    """Wait for something that nobody announces."""
    deadline = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < deadline, f"never happened: {what}"
        threading.Event().wait(0.02)
