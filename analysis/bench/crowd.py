"""A crowd: clients that all connect at once, and how long each waits for the first byte of its first answer.

The kernel takes connections before the server does, so each client asks as soon as it has begun to connect. A
server that takes few connections at a time, and serves those that it has taken in between, lets the last of
them wait; most so when those that came first go on asking.
"""

import math
import random
import select
import socket
import time
from dataclasses import dataclass

from analysis.bench.peers import Peer, on_the_load_core
from analysis.bench.traffic import request

PATIENCE = 10.0
"""Seconds after which a client has waited in vain."""

ANSWER_ENDS = b"}"
"""The last byte of the replicas' answers."""


@dataclass(slots=True)
class _Client:
    """One of the crowd.

    Args:
        connection: Its socket.
        began: When it began to connect.
        waited: Seconds until the first byte of its first answer; infinite: none has come.
    """

    connection: socket.socket
    began: float
    waited: float = math.inf


def first_answers(peer: Peer, clients: int, seconds: float) -> list[float]:
    """Have them connect and ask; the seconds that each waited, ascending, infinite for those in vain.

    Args:
        peer: Whom they ask.
        clients: How many.
        seconds: For which they go on asking, each as soon as it has its answer; 0: each asks once.
    """
    with on_the_load_core(), select.epoll() as epoll:
        return _Crowd(epoll, peer.port, seconds).run(clients)


class _Crowd:
    """All of them.

    Args:
        epoll: Tells which of them can go on.
        port: That they connect to.
        seconds: For which they go on asking.
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
                self._begin(connection)
            while time.monotonic() - began < (PATIENCE if self._waiting else self._seconds):
                for file, event in self._epoll.poll(0.1):
                    self._go_on(file, event)
        finally:
            for connection in sockets:
                connection.close()
        return sorted(client.waited for client in self._clients.values())

    def _begin(self, connection: socket.socket) -> None:
        client = self._clients[connection.fileno()] = _Client(connection, time.monotonic())
        connection.connect_ex(("127.0.0.1", self._port))
        try:
            self._ask(client)
        except OSError:  # not connected yet: it asks as soon as it is
            self._epoll.modify(connection, select.EPOLLOUT)
        else:
            self._epoll.modify(connection, select.EPOLLIN)

    def _go_on(self, file: int, event: int) -> None:
        client = self._clients[file]
        try:
            if event & select.EPOLLOUT:
                self._ask(client)
                self._epoll.modify(file, select.EPOLLIN)
                return
            data = client.connection.recv(1 << 16)
            if data and client.waited == math.inf:
                client.waited = time.monotonic() - client.began
                self._waiting -= 1
            if self._seconds and data.endswith(ANSWER_ENDS):
                self._ask(client)
        except OSError:  # refused, or broken off
            data = b""
        if not data:
            self._epoll.unregister(file)

    def _ask(self, client: _Client) -> None:
        self._number += 1
        client.connection.send(request(self._number, self._host))
