"""Every listening socket has a worker that serves, if there is one."""

from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.workers.sharing import share_out


@given(st.lists(st.booleans(), min_size=1, max_size=16))
def test_each_socket_is_served(serving: list[bool]) -> None:
    shares = share_out(serving)
    for index, share in enumerate(shares):
        assert index in share, "a worker always has its own"
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
                assert accepted_by == [index], "the socket of a worker that serves is its own"


def test_the_next_worker_takes_over() -> None:
    assert share_out([True, True, True]) == [[0], [1], [2]]
    assert share_out([True, False, True]) == [[0], [1], [1, 2]]
    assert share_out([True, True, False]) == [[0, 2], [1], [2]]
    assert share_out([False, False, True]) == [[0], [1], [0, 1, 2]]
    assert share_out([False, False]) == [[0], [1]]
