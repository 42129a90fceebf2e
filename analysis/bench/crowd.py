"""Measures the wait for the first answer when many clients connect at the same moment.

The wait ends at the first byte of the first answer. The kernel completes a connection before the server
accepts it, so each client sends its request as soon as it has begun to connect. A server that accepts few
connections in a turn, and serves them before it accepts more, makes the last clients wait. The wait is
longest when the first clients send further requests meanwhile.
"""

import math
import random
import select
import socket
import time
from dataclasses import dataclass

from analysis.bench.peers import Peer, on_load_core
from analysis.bench.traffic import request

PATIENCE = 10.0
"""Seconds until a client without an answer gives up."""

ANSWER_ENDS = b"}"
"""The last byte of the replicas' answers."""


@dataclass(slots=True)
class _Client:
    """A client.

    Args:
        connection: Socket of the client.
        began: Time at which it began to connect, by `time.monotonic`.
        waited: Seconds until the first byte of its first answer; infinite: it has no answer.
    """

    connection: socket.socket
    began: float
    waited: float = math.inf


def first_answers(peer: Peer, clients: int, seconds: float) -> list[float]:
    """Connect all clients at once, and return their waits in seconds, ascending; infinite without an answer.

    Args:
        peer: Peer that they connect to.
        clients: Number of clients.
        seconds: Time for which each client sends a request after each answer; 0: one request each.
    """
    with on_load_core(), select.epoll() as epoll:
        return _Crowd(epoll, peer.port, seconds).run(clients)


class _Crowd:
    """All clients of one measurement.

    Args:
        epoll: Reports the sockets that can be written or read.
        port: Port that the clients connect to.
        seconds: Time for which each client sends further requests; 0: one request each.
    """

    def __init__(self, epoll: select.epoll, port: int, seconds: float) -> None:
        self._epoll = epoll
        self._port = port
        self._host = f"127.0.0.1:{port}"
        self._seconds = seconds
        self._clients: dict[int, _Client] = {}
        self._number = random.randrange(1_000_000_000)
        self._waiting = 0

    def run(self, clients: int) -> list[float]:
        sockets = [socket.socket() for _ in range(clients)]
        self._waiting = clients
        try:
            for connection in sockets:
                connection.setblocking(False)
                self._epoll.register(connection, 0)
            began = time.monotonic()
            for connection in sockets:
                self._connect(connection)
            while time.monotonic() - began < (PATIENCE if self._waiting else self._seconds):
                for file, event in self._epoll.poll(0.1):
                    self._handle(file, event)
        finally:
            for connection in sockets:
                connection.close()
        return sorted(client.waited for client in self._clients.values())

    def _connect(self, connection: socket.socket) -> None:
        client = self._clients[connection.fileno()] = _Client(connection, time.monotonic())
        connection.connect_ex(("127.0.0.1", self._port))
        try:
            self._send(client)
        except OSError:  # not connected yet: send when the socket can be written
            self._epoll.modify(connection, select.EPOLLOUT)
        else:
            self._epoll.modify(connection, select.EPOLLIN)

    def _handle(self, file: int, event: int) -> None:
        client = self._clients[file]
        try:
            if event & select.EPOLLOUT:
                self._send(client)
                self._epoll.modify(file, select.EPOLLIN)
                return
            data = client.connection.recv(1 << 16)
            if data and client.waited == math.inf:
                client.waited = time.monotonic() - client.began
                self._waiting -= 1
            if self._seconds and data.endswith(ANSWER_ENDS):
                self._send(client)
        except OSError:  # refused or reset
            data = b""
        if not data:
            self._epoll.unregister(file)

    def _send(self, client: _Client) -> None:
        self._number += 1
        client.connection.send(request(self._number, self._host))
