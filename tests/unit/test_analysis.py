"""The arithmetic behind the figures of the experiments and of the benchmark."""

import asyncio
import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.bench import lane, traffic
from analysis.context import Context
from analysis.experiments import bounded, disruption
from analysis.experiments.a4 import noise
from analysis.experiments.spread import chi_square_bound, figures
from analysis.load.generator import Target
from analysis.load.record import Record, percentile
from analysis.published import PUBLISHED, exact_share
from loadbalancer.cli.distribution import draw, draw_ids
from loadbalancer.routing.ring import Ring


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=200),
    st.sampled_from([1.0, 50.0, 90.0, 99.0, 99.9, 100.0]),
)
def test_a_percentile_splits_the_values_at_its_rank(values: list[float], percent: float) -> None:
    ordered = sorted(values)
    value = percentile(ordered, percent)
    assert sum(one <= value for one in ordered) >= len(ordered) * percent / 100 - 1e-9
    assert sum(one < value for one in ordered) < len(ordered) * percent / 100


def test_the_percentile_of_no_values_is_nan() -> None:
    assert math.isnan(percentile([], 50))


@pytest.mark.parametrize(("degrees", "expected"), [(1, 6.635), (2, 9.210), (5, 15.086), (99, 134.642)])
def test_the_bound_of_chi_square_equals_the_published_tables(degrees: int, expected: float) -> None:
    assert chi_square_bound(degrees) == pytest.approx(expected, rel=0.02)


def test_random_counts_exceed_the_bound_of_chi_square_about_once_in_a_hundred() -> None:
    rng = random.Random(1)
    beyond = 0
    for _ in range(1_000):
        counts = [0, 0, 0, 0]
        for _ in range(1_000):
            counts[rng.randrange(4)] += 1
        beyond += figures(counts)["chi_square"] > chi_square_bound(3)
    assert 2 <= beyond <= 25


def test_the_figures_of_a_spread() -> None:
    assert figures([30, 10, 20]) == {
        "mean": 20,
        "deviation": pytest.approx(math.sqrt(200 / 3)),
        "peak_to_mean": 1.5,
        "chi_square": 10,
        "chi_square_bound": chi_square_bound(2),
    }


def test_a_record_is_summarized() -> None:
    record = Record(took=2.0)
    for number in range(10):
        name = b'{"message":"Hello from Server: S%d"}' % (number % 2)
        record.add(number, number * 0.1, 0.01 * (number + 1), 200, name)
    record.add(10, 1.0, 0.5, 503, b"")
    record.add(11, 1.0, 0.1, 0, b"refused")
    summary = record.summary()
    assert summary["requests"] == 12
    assert summary["rate"] == 6
    assert summary["failed"] == 2
    assert summary["errors"] == {"status 503": 1, "refused": 1}
    assert summary["replicas"] == {"S0": 5, "S1": 5}
    assert summary["percentiles"]["50"] == pytest.approx(0.05)
    assert summary["max"] == pytest.approx(0.1)
    timeline = record.over_time(0.5)
    assert [bucket["answered"] for bucket in timeline] == [5, 5, 0, 0]
    assert [bucket["failed"] for bucket in timeline] == [0, 0, 2, 0]
    assert timeline[2]["slowest"] == 0.5


def test_random_ids_equal_those_of_the_ring_command() -> None:
    ids = draw_ids(1_000, seed=7)
    ring = Ring.build("classic", range(1, 4))
    counts = draw("classic", 3, 1_000, seed=7).counts
    assert counts == {f"Server-{n}": sum(ring.owner(one) == n for one in ids) for n in (1, 2, 3)}
    assert all(len(one) == 6 for one in ids)


def test_noise_tells_the_published_counts_from_wrong_ones() -> None:
    for name, rows in PUBLISHED.items():
        for row in rows:
            shares = list(exact_share(name, Ring.build(name, range(1, len(row) + 1))).values())
            assert noise(row, shares) <= 4
            assert noise(list(reversed(row)), shares) > 4


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:5000/home", Target("127.0.0.1", 5000, False, "/home")),
        ("https://x", Target("x", 443, True, "/")),
        ("http://x/a?b=c", Target("x", 80, False, "/a?b=c")),
    ],
)
def test_urls_are_parsed(url: str, expected: Target) -> None:
    assert Target.parse(url) == expected


@pytest.mark.parametrize("url", ["", "x", "ftp://x/", "http://"])
def test_a_text_that_is_not_a_url_is_named_in_the_error(url: str) -> None:
    with pytest.raises(ValueError, match="is not a URL such as"):
        Target.parse(url)


def test_the_bound_of_bounded_loads_equals_the_formula_of_the_paper() -> None:
    assert [bounded.bound(factor) for factor in (0, 2, 1.5, 1.25, 1.1)] == [None, 26, 20, 16, 15]


def test_the_default_ring_moves_few_keys_and_modulo_n_moves_most(tmp_path: Path) -> None:
    result = asyncio.run(disruption.run(Context(tmp_path, quick=True, show=False)))
    rows = {(row["hash"], row["size"]): row for row in result["rows"]}
    for size in range(2, 7):
        row = rows["default", size]
        assert row["between"] == 0, "no key moves between members that stay"
        assert row["joined"] <= 1.2 / (size + 1)
        assert row["left"] <= 1.2 / size
        modulo = rows["modulo N", size]
        assert modulo["joined"] == pytest.approx(size / (size + 1), abs=0.05), "nearly all keys move"


@pytest.mark.parametrize(("client", "replica"), list(zip(lane.REQUESTS, lane.ANSWERS, strict=True)))
def test_an_exchange_without_sockets_takes_time(client: str, replica: str) -> None:
    assert 0 < lane.measure(lane.REQUESTS[client], lane.ANSWERS[replica], 500) < 10_000


def test_an_exchange_that_fails_raises_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"a client got|nothing was written"):
        lane.measure(lane.REQUESTS["curl"], lambda n: b"no HTTP", 10)


def test_all_varied_requests_differ() -> None:
    assert len({traffic.request(n, "x").split(b" ")[1] for n in range(5_000)}) == 5_000
    assert len({traffic.request(n, "x").partition(b"Cookie: ")[2] for n in range(5_000)}) == 5_000
