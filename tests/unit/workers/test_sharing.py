"""Every listening socket is assigned to a worker that serves, if one serves."""

from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.workers.sharing import assign


@given(st.lists(st.booleans(), min_size=1, max_size=16))
def test_exactly_one_serving_worker_accepts_from_each_socket(serving: list[bool]) -> None:
    shares = assign(serving)
    for index, share in enumerate(shares):
        assert index in share, "a worker always has its own socket"
        assert share == sorted(set(share))
        if not serving[index]:
            assert share == [index]
    if any(serving):
        for index, served in enumerate(serving):
            accepted_by = [
                worker for worker, share in enumerate(shares) if serving[worker] and index in share
            ]
            assert len(accepted_by) == 1
            if served:
                assert accepted_by == [index], "a worker that serves has its socket alone"


def test_the_next_serving_worker_gets_the_socket() -> None:
    assert assign([True, True, True]) == [[0], [1], [2]]
    assert assign([True, False, True]) == [[0], [1], [1, 2]]
    assert assign([True, True, False]) == [[0, 2], [1], [2]]
    assert assign([False, False, True]) == [[0], [1], [0, 1, 2]]
    assert assign([False, False]) == [[0], [1]]
