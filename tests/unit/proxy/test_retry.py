import pytest

from loadbalancer.errors import (
    UpstreamClosedError,
    UpstreamError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
)
from loadbalancer.proxy.retry import IDEMPOTENT, RetryBudget, may_repeat


@pytest.mark.parametrize("method", [*sorted(IDEMPOTENT), "POST", "PATCH", "BREW"])
def test_what_was_never_sent_may_be_sent(method: str) -> None:
    for error in (UpstreamRefusedError("refused"), UpstreamUnreachableError("too slow")):
        assert may_repeat(method, error, body_at_hand=True)
        assert not may_repeat(method, error, body_at_hand=False)


@pytest.mark.parametrize(("method", "may"), [("GET", True), ("PUT", True), ("POST", False), ("BREW", False)])
def test_what_may_have_been_done_is_repeated_only_if_that_does_no_harm(method: str, may: bool) -> None:
    assert may_repeat(method, UpstreamClosedError("closed"), body_at_hand=True) is may
    assert not may_repeat(method, UpstreamClosedError("closed"), body_at_hand=False)


@pytest.mark.parametrize("error", [UpstreamError("garbage"), UpstreamTimeoutError("silence")])
def test_what_was_answered_or_timed_out_is_not_repeated(error: UpstreamError) -> None:
    assert not may_repeat("GET", error, body_at_hand=True)


class Hand:
    """A clock that is moved by hand."""

    now = 1000.0


def budget() -> tuple[RetryBudget, Hand]:
    clock = Hand()
    return RetryBudget(clock), clock


def spend(budget: RetryBudget) -> int:
    spent = 0
    while budget.withdraw():
        spent += 1
    return spent


def test_some_retries_are_always_allowed() -> None:
    spending, _ = budget()
    spending.request()
    assert spend(spending) == 100, "ten a second, for ten seconds"


def test_at_most_a_fifth_of_the_recent_requests_are_retried() -> None:
    spending, _ = budget()
    for _ in range(10_000):
        spending.request()
    assert spend(spending) == 2_000


def test_the_budget_fills_again_as_time_passes() -> None:
    spending, clock = budget()
    for _ in range(1_000):
        spending.request()
    assert spend(spending) == 200
    clock.now += 5
    assert spend(spending) == 0
    clock.now += 5
    spending.request()
    assert spend(spending) == 100
    for second in range(30):
        clock.now += 1
        for _ in range(500):
            spending.request()
        assert spend(spending) <= 1_000, second
