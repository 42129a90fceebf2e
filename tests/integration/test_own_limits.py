"""When the load balancer itself runs out of files, no replica is blamed, and clients wait or are told."""

import threading
from collections.abc import Iterator

import pytest

from tests.harness import LoadBalancer, eventually, replica, request

FILES = 90
"""The process itself takes about thirty; what is left is too little for forty requests."""


@pytest.fixture(params=["fast", "asgi"])
def lb(request: pytest.FixtureRequest) -> Iterator[LoadBalancer]:
    options = ("--lane", request.param, "--command", replica("odd"), "--heartbeat-interval", "0.05")
    running = LoadBalancer(*options, "--max-fail-count", "2", "--queue-timeout", "5", replicas=2)
    running.wrap("sh", "-c", f'ulimit -n {FILES} && exec "$0" "$@"')
    with running:
        yield running


def test_no_replica_is_blamed_when_the_load_balancer_has_no_files_left(lb: LoadBalancer) -> None:
    statuses: list[int] = []

    def ask() -> None:
        try:
            statuses.append(request(lb.port, "GET", "/slow?seconds=0.5").status)
        except OSError:
            statuses.append(0)

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # 0: there was no file left to accept the connection with, and the loop closed it.
    assert set(statuses) <= {0, 200, 503}
    assert statuses.count(200) >= 15

    def as_before() -> bool:
        try:
            state = lb.state().values()
            served = request(lb.port, "GET", "/x").status == 200
        except OSError:
            return False  # files are not free again yet
        return served and all(one["state"] == "up" and one["restarts"] == 0 for one in state)

    eventually(as_before, "it serves, and heartbeats that could not be sent were held against nobody")
