"""Accepting on real sockets: all that wait are accepted in one turn of the loop, and errors are one's own."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack
from typing import Any

import pytest
from structlog.testing import capture_logs

from loadbalancer.proxy.fast import accepting
from loadbalancer.proxy.fast.accepting import ACCEPTED_AT_ONCE, Acceptor, Handshakes
from tests.harness import eventually

MANY = 100


class Accepted(asyncio.Protocol):
    """The end of a connection that was accepted."""

    def __init__(self, made: "list[Accepted]") -> None:
        made.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport


class Listening:
    """An acceptor, and what it has accepted."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address = self.listener.getsockname()
        self.made: list[Accepted] = []
        self.opening: list[Coroutine[Any, Any, None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        handshakes = Handshakes(None, within=5, linger=1, proxies=None)
        make: Callable[[str], asyncio.BaseProtocol] = lambda _: Accepted(self.made)  # noqa: E731
        self.acceptor = Acceptor(self.listener, make, self.spawn, handshakes)

    def spawn(self, work: Coroutine[Any, Any, None]) -> object:
        self.opening.append(work)
        self._tasks.append(asyncio.create_task(work))
        return self._tasks[-1]

    async def close(self) -> None:
        self.acceptor.stop()
        await asyncio.gather(*self._tasks)
        for one in self.made:
            one.transport.close()


@pytest.fixture
async def listening() -> AsyncIterator[Listening]:
    made = Listening()
    yield made
    await made.close()


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(eventually, condition, "what the loop is to do")


async def test_all_that_wait_are_accepted_in_one_turn(listening: Listening) -> None:
    with ExitStack() as clients:
        for _ in range(MANY):
            clients.enter_context(socket.create_connection(listening.address))
        listening.acceptor.start(1024)
        counts = []
        while len(listening.opening) < MANY:
            await asyncio.sleep(0)
            counts.append(len(listening.opening))
        assert set(counts) <= {0, MANY}, "not one in each turn"
        await until(lambda: len(listening.made) == MANY)


async def test_but_not_so_many_that_open_connections_wait(listening: Listening) -> None:
    with ExitStack() as clients:
        for _ in range(ACCEPTED_AT_ONCE + 50):
            clients.enter_context(socket.create_connection(listening.address))
        listening.acceptor.start(1024)
        for _ in range(10):
            await asyncio.sleep(0)
            if listening.opening:
                break
        assert len(listening.opening) == ACCEPTED_AT_ONCE
        await until(lambda: len(listening.made) == ACCEPTED_AT_ONCE + 50)


async def test_without_files_it_pauses_and_goes_on(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """A listening socket of a process that has no file left."""

        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock
            self.asked = 0

        def accept(self) -> tuple[socket.socket, Any]:
            self.asked += 1
            if self.asked == 1:
                raise OSError(errno.EMFILE, "Too many open files")
            return self.sock.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sock, name)

    monkeypatch.setattr(accepting, "PAUSE", 0.01)
    monkeypatch.setattr(listening.acceptor, "_listener", full := Full(listening.listener))
    with capture_logs() as records, socket.create_connection(listening.address):
        listening.acceptor.start(1024)
        await until(lambda: len(listening.made) == 1)
    assert [record["event"] for record in records] == ["no connection can be accepted"]
    assert full.asked >= 2


async def test_a_client_that_has_gone_before_is_no_error(listening: Listening) -> None:
    with capture_logs() as records:
        socket.create_connection(listening.address).close()
        with socket.create_connection(listening.address):
            listening.acceptor.start(1024)
            await until(lambda: len(listening.opening) == 2)
    assert records == []


async def test_nothing_is_accepted_after_the_end(listening: Listening) -> None:
    listening.acceptor.start(1024)
    listening.acceptor.stop()
    listening.acceptor.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(listening.address)
