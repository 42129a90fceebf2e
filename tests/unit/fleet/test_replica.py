import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.fleet.backends.base import Instance, ReplicaSpec
from loadbalancer.fleet.replica import IllegalTransitionError, Replica, State
from tests.unit.fleet.fakes import run

LEGAL = {
    (State.STARTING, State.UP),
    (State.STARTING, State.DOWN),
    (State.STARTING, State.DRAINING),
    (State.STARTING, State.GONE),
    (State.UP, State.DOWN),
    (State.UP, State.DRAINING),
    (State.DOWN, State.STARTING),
    (State.DOWN, State.DRAINING),
    (State.DRAINING, State.GONE),
}


async def replica_in(state: State) -> Replica:
    replica = Replica(ReplicaSpec("Server-1", 1), admitted=True)
    replica.instance = Instance("id", "127.0.0.1", 80)
    replica.state = state
    return replica


@pytest.mark.parametrize(("old", "new"), list(itertools.product(State, State)))
def test_illegal_transitions_are_refused(old: State, new: State) -> None:
    async def main() -> None:
        replica = await replica_in(old)
        if (old, new) in LEGAL:
            replica.move(new, "a reason")
            assert (replica.state, replica.reason) == (new, "a reason")
        else:
            with pytest.raises(IllegalTransitionError):
                replica.move(new)
            assert replica.state is old

    run(main())


@given(st.lists(st.sampled_from(State), max_size=12))
def test_only_an_up_replica_can_get_requests_and_a_draining_one_keeps_its_count(orders: list[State]) -> None:
    async def main() -> None:
        replica = await replica_in(State.STARTING)
        for order in orders:
            before = replica.upstream
            try:
                replica.move(order)
            except IllegalTransitionError:
                continue
            if order is State.UP:
                assert replica.upstream is not None
                assert replica.upstream is not before
            elif order is State.DRAINING:
                assert replica.upstream is before
            else:
                assert replica.upstream is None
            assert replica.counts == (replica.state in (State.STARTING, State.UP, State.DOWN))

    run(main())


def test_a_replica_without_an_instance_cannot_be_up() -> None:
    with pytest.raises(IllegalTransitionError):
        Replica(ReplicaSpec("Server-1", 1)).move(State.UP)
