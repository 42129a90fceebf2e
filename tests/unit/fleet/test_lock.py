import asyncio

from loadbalancer.fleet.lock import FleetLock
from tests.unit.fleet.fakes import pass_time, run


def test_readers_share_and_a_writer_is_alone_in_the_order_of_asking() -> None:
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


def test_a_cancelled_writer_does_not_leave_the_readers_behind_it_asleep() -> None:
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


def test_a_holder_cancelled_inside_lets_go() -> None:
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
