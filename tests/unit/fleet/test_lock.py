import asyncio

from loadbalancer.fleet.lock import FleetLock
from tests.unit.fleet.fakes import pass_time, run


def test_readers_share_the_lock_and_writers_hold_it_alone_in_order() -> None:
    async def main() -> list[str]:
        lock = FleetLock()
        order: list[str] = []

        async def use(name: str, write: bool) -> None:
            async with lock.write() if write else lock.read():
                order.append(f"{name} in")
                await pass_time(1)
                order.append(f"{name} out")

        await asyncio.gather(use("r1", False), use("r2", False), use("w", True), use("r3", False))
        return order

    assert run(main()) == ["r1 in", "r2 in", "r1 out", "r2 out", "w in", "w out", "r3 in", "r3 out"]


def test_a_cancelled_writer_does_not_block_the_readers_behind_it() -> None:
    async def main() -> None:
        lock = FleetLock()

        async def read() -> None:
            async with lock.read():
                pass

        async def write() -> None:
            async with lock.write():
                pass

        async with lock.read():
            writer = asyncio.create_task(write())
            await pass_time(0)
            reader = asyncio.create_task(read())
            await pass_time(0)
            writer.cancel()
            await asyncio.wait_for(reader, timeout=1)

    run(main())


def test_a_cancelled_holder_releases_the_lock() -> None:
    async def main() -> None:
        lock = FleetLock()

        async def hold() -> None:
            async with lock.write():
                await pass_time(60)

        holder = asyncio.create_task(hold())
        await pass_time(0)
        holder.cancel()
        async with asyncio.timeout(1), lock.write():
            pass

    run(main())
