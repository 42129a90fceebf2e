"""Thousands of orders of add, remove, die, hang, recover and engine gone, on a virtual clock.

Whatever the order, the invariants hold after every step; and once the faults have stopped, the fleet
has the N that the arithmetic of its `/add`s and `/rm`s says.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from loadbalancer.errors import BackendError, BadRequestError
from loadbalancer.fleet.fleet import Fleet
from tests.unit.fleet.fakes import FakeBackend, make_fleet, make_loop, pass_time

CAPACITY = 12
PAUSES = st.sampled_from([0.0, 0.0, 0.05, 0.5, 3.0, 12.0])


class FleetMachine(RuleBasedStateMachine):
    """Orders and faults come while earlier ones are still being worked on."""

    fleet: Fleet

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=make_loop)
        self.backend = FakeBackend()
        self.orders: list[tuple[int, asyncio.Task[list[str]]]] = []
        self.initial = 0

    def go(self, main: Coroutine[Any, Any, Any]) -> None:
        self.runner.run(main)

    @initialize(replicas=st.integers(0, 4), seed=st.integers(0, 99))
    def open(self, replicas: int, seed: int) -> None:
        async def main() -> None:
            self.fleet, _ = make_fleet(
                self.backend, replicas=replicas, capacity=CAPACITY, seed=seed, start=5.0, drain=2.0
            )
            holds = self.fleet._roster.lock._lock._holds
            self.backend.lock_is_held = lambda: any(holds.values())
            await self.fleet.open()

        self.initial = replicas
        self.go(main())

    @rule(n=st.integers(1, 4), pause=PAUSES)
    def add(self, n: int, pause: float) -> None:
        async def main() -> None:
            self.orders.append((n, asyncio.create_task(self.fleet.add(n))))
            await pass_time(pause)

        self.go(main())

    @rule(n=st.integers(1, 4), pause=PAUSES)
    def remove(self, n: int, pause: float) -> None:
        async def main() -> None:
            self.orders.append((-n, asyncio.create_task(self.fleet.remove(n))))
            await pass_time(pause)

        self.go(main())

    @precondition(lambda self: self.backend.running)
    @rule(data=st.data(), fault=st.sampled_from(["die", "hang"]), pause=PAUSES)
    def break_one(self, data: st.DataObject, fault: str, pause: float) -> None:
        async def main() -> None:
            if not self.backend.running:
                return  # the last one ended before this began
            _, instance = self.backend.running[data.draw(st.sampled_from(sorted(self.backend.running)))]
            if fault == "die":
                self.backend._end(instance.id, "killed")
            else:
                self.backend.hung.add(instance.id)
            await pass_time(pause)

        self.go(main())

    @precondition(lambda self: self.fleet.snapshot.upstreams)
    @rule(data=st.data(), refused=st.booleans(), pause=PAUSES)
    def fail_requests(self, data: st.DataObject, refused: bool, pause: float) -> None:
        async def main() -> None:
            if not self.fleet.snapshot.upstreams:
                return  # the last one left the rotation before this began
            upstream = data.draw(st.sampled_from(self.fleet.snapshot.upstreams))
            for _ in range(5):
                if refused:
                    upstream.record_refusal()
                else:
                    upstream.record_failure()
                await pass_time(0)
            await pass_time(pause)

        self.go(main())

    @rule(pause=PAUSES)
    def recover(self, pause: float) -> None:
        async def main() -> None:
            self.backend.hung.clear()
            self.backend.unreachable = False
            self.backend.refuse = lambda spec: None
            await pass_time(pause)

        self.go(main())

    @rule(pause=PAUSES)
    def engine_gone(self, pause: float) -> None:
        async def main() -> None:
            self.backend.unreachable = True
            await pass_time(pause)

        self.go(main())

    @rule(pause=PAUSES)
    def starts_fail(self, pause: float) -> None:
        async def main() -> None:
            self.backend.refuse = lambda spec: "no memory left"
            await pass_time(pause)

        self.go(main())

    @invariant()
    def names_and_numbers_are_unique_and_the_rotation_is_what_is_up(self) -> None:
        async def main() -> None:
            replicas = (await self.fleet.describe()).replicas
            hostnames = [replica.hostname for replica in replicas]
            numbers = [replica.number for replica in replicas]
            assert len(set(hostnames)) == len(hostnames) <= CAPACITY
            assert len(set(numbers)) == len(numbers)
            up = {replica.hostname for replica in replicas if replica.state == "up"}
            assert {upstream.hostname for upstream in self.fleet.snapshot.upstreams} == up
            names = [spec.hostname for spec, _ in self.backend.running.values()]
            assert len(set(names)) == len(names)

        self.go(main())

    def teardown(self) -> None:
        if not hasattr(self, "fleet"):
            self.runner.close()
            return

        async def main() -> None:
            self.backend.hung.clear()
            self.backend.unreachable = False
            self.backend.refuse = lambda spec: None
            await pass_time(600)  # longer than any backoff or ejection
            expected = self.initial
            for n, order in self.orders:
                assert order.done(), "no order takes for ever"
                error = order.exception()
                assert isinstance(error, BackendError | BadRequestError | None)
                if error is None or (n < 0 and isinstance(error, BackendError)):
                    expected += n
            assert len(await self.fleet.members()) == expected
            assert len(self.fleet.snapshot.upstreams) == expected
            assert len(self.backend.running) == expected, "none is leaked"
            await self.fleet.close()
            assert not self.backend.running

        self.go(main())
        self.runner.close()


TestFleet = FleetMachine.TestCase
TestFleet.settings = settings(
    max_examples=200,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
