"""Connections to a replica: few are made at a time, and those that come back go to who waits."""

import asyncio
import errno
import time
from typing import Any

import pytest

from loadbalancer.errors import (
    ExhaustedError,
    UpstreamLeftError,
    UpstreamRefusedError,
    UpstreamUnreachableError,
)
from loadbalancer.proxy.fast.limits import Limits
from loadbalancer.proxy.fast.pool import CONNECTS_AT_ONCE, SURE, Pool
from loadbalancer.proxy.fast.upstream import UpstreamConnection
from loadbalancer.settings import Settings
from tests.unit.fleet.fakes import pass_time, scenario


class Clock:
    now = 0.0


class Transport:
    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...


class Controlled(Pool):
    """A pool whose connections are made when the test says so."""

    def __init__(self) -> None:
        options = Settings.model_validate({"connect_timeout": 1, "queue_timeout": 2})
        super().__init__("S1", "192.0.2.1", 1, 1.5, Clock(), Limits.of(options))
        self.opening: list[asyncio.Future[UpstreamConnection]] = []

    async def open(self) -> UpstreamConnection:
        self.opening.append(asyncio.get_running_loop().create_future())
        return await self.opening[-1]

    def made(self) -> UpstreamConnection:
        connection = UpstreamConnection(self)
        connection.transport = Transport()  # type: ignore[assignment]
        return connection


def ask(pool: Pool, count: int) -> list["asyncio.Task[Any]"]:
    return [asyncio.create_task(pool.obtain()) for _ in range(count)]


@scenario
async def test_few_are_made_at_a_time() -> None:
    pool = Controlled()
    asking = ask(pool, CONNECTS_AT_ONCE + 2)
    await pass_time(0.001)
    assert len(pool.opening) == CONNECTS_AT_ONCE
    pool.opening[0].set_result(pool.made())
    await pass_time(0.001)
    assert asking[0].done()
    assert len(pool.opening) == CONNECTS_AT_ONCE + 1, "the next one's turn"
    pool.opening[1].set_exception(ConnectionRefusedError(errno.ECONNREFUSED, "refused"))
    await pass_time(0.001)
    assert isinstance(asking[1].exception(), UpstreamRefusedError)
    assert len(pool.opening) == CONNECTS_AT_ONCE + 2, "a failure makes way as well"


@scenario
async def test_one_that_comes_back_goes_to_the_first_that_waits() -> None:
    pool = Controlled()
    asking = ask(pool, CONNECTS_AT_ONCE + 2)
    await pass_time(0.001)
    first, second = asking[-2:]
    connection = pool.made()
    pool.give_back(connection)
    await pass_time(0.001)
    assert first.result() is connection
    assert not second.done()
    assert pool.take() is None, "it is not idle"


@scenario
async def test_what_is_given_to_one_that_gives_up_goes_to_the_next() -> None:
    pool = Controlled()
    asking = ask(pool, CONNECTS_AT_ONCE + 2)
    await pass_time(0.001)
    first, second = asking[-2:]
    connection = pool.made()
    pool.give_back(connection)
    first.cancel()
    await pass_time(0.001)
    assert second.result() is connection


@scenario
async def test_time_outs_are_each_ones_own() -> None:
    pool = Controlled()
    asking = ask(pool, CONNECTS_AT_ONCE + 1)
    await pass_time(1.1)
    assert all(isinstance(task.exception(), UpstreamUnreachableError) for task in asking[:-1])
    assert not asking[-1].done(), "its time began when its turn came"
    await pass_time(1)
    assert isinstance(asking[-1].exception(), UpstreamUnreachableError)


@scenario
async def test_without_files_one_waits_for_a_connection_to_come_back() -> None:
    pool = Controlled()
    lucky, late = ask(pool, 2)
    await pass_time(0.001)
    for opening in pool.opening:
        opening.set_exception(OSError(errno.EMFILE, "Too many open files"))
    await pass_time(1.9)
    assert not lucky.done()
    assert len(pool.opening) == 2, "nobody tries again until something has changed"
    connection = pool.made()
    pool.give_back(connection)
    await pass_time(0.2)
    assert lucky.result() is connection
    with pytest.raises(ExhaustedError, match="can open no connection: Too many open files"):
        late.result()


@scenario
async def test_a_replica_that_leaves_keeps_nobody_waiting() -> None:
    pool = Controlled()
    asking = ask(pool, CONNECTS_AT_ONCE + 5)
    await pass_time(0.001)
    pool.close()
    await pass_time(0.001)
    assert all(isinstance(task.exception(), UpstreamRefusedError) for task in asking[-5:])


def idle_connection(pool: Pool) -> UpstreamConnection:
    connection = UpstreamConnection(pool)
    connection.transport = Transport()  # type: ignore[assignment]
    pool.give_back(connection)
    return connection


@scenario
async def test_the_last_one_used_is_taken_and_none_that_has_ended() -> None:
    pool = Controlled()
    first, second, third = (idle_connection(pool) for _ in range(3))
    third.connection_lost(None)
    assert pool.take() is second
    first.connection_lost(None)
    assert pool.take() is None


@scenario
async def test_what_may_not_be_sent_twice_goes_only_on_one_that_was_just_used() -> None:
    pool = Controlled()
    connection = idle_connection(pool)
    pool._clock.now += SURE + 0.01  # type: ignore[misc]
    assert pool.take(sure=True) is None
    assert pool.take() is connection, "it is kept for others"
    pool.give_back(connection)
    assert pool.take(sure=True) is connection


@scenario
async def test_ten_thousand_idle_connections_that_end_at_once_cost_little() -> None:
    """Each costs the same however many there are: a thousand cost about a tenth of ten thousand."""

    def spent(count: int) -> float:
        pool = Controlled()
        connections = [idle_connection(pool) for _ in range(count)]
        began = time.process_time()
        for connection in connections:
            connection.connection_lost(None)
        assert pool.take() is None
        return time.process_time() - began

    few = min(spent(1000) for _ in range(3))
    assert spent(10_000) < 50 * few


@scenario
async def test_all_who_wait_for_a_replica_that_has_left_the_rotation_are_told_at_once() -> None:
    pool = Controlled()
    asking = ask(pool, 3 * CONNECTS_AT_ONCE)
    await pass_time(0.001)
    pool.dismiss()
    await pass_time(0.001)
    assert all(isinstance(task.exception(), UpstreamLeftError) for task in asking)
