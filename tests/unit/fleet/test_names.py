import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.fleet.names import NameMaker, lowest_free


def test_a_generated_name_has_three_random_digits_and_the_milliseconds() -> None:
    name = NameMaker(random.Random(1), lambda: 1_700_000_000_042).make(())
    assert re.fullmatch(r"Server-\d{3}-042", name)


def test_generated_names_differ_even_within_one_millisecond() -> None:
    maker = NameMaker(random.Random(1), lambda: 7)
    names = [maker.make(()) for _ in range(1500)]
    assert len(set(names)) == 1500
    assert sum(name.endswith("-007") for name in names) > 600


def test_a_name_in_use_is_not_generated() -> None:
    taken = {f"server-{i:03}-007" for i in range(1000) if i != 123}
    assert NameMaker(random.Random(1), lambda: 7).make(taken) not in {name.title() for name in taken}


def test_an_error_is_raised_when_all_names_are_used() -> None:
    taken = {f"server-{i // 1000:03}-{i % 1000:03}" for i in range(1_000_000)}
    with pytest.raises(RuntimeError, match="every name"):
        NameMaker(random.Random(1), lambda: 7).make(taken)


@given(st.sets(st.integers(1, 30)))
def test_lowest_free_returns_the_lowest_free_number(taken: set[int]) -> None:
    number = lowest_free(taken)
    assert number not in taken
    assert set(range(1, number)) <= taken
