"""The hash functions, compared with values that were computed by hand or in another way."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.routing import hashing


def test_the_classic_polynomials() -> None:
    assert hashing.classic_key("3") == 9 + 6 + 17
    assert hashing.classic_point(2, 3) == 4 + 9 + 6 + 25
    assert hashing.modified_key("3") == 1427 * 9 + 2503 * 3 + 2003
    assert hashing.modified_point(2, 3) == 1249 * 4 + 2287 * 9 + 1663 * 3 + 2287


def test_sha256_hashes_big_endian_bytes_without_leading_zeros() -> None:
    assert hashing.classic_key("123456") == 0x038C78D491
    expected = hashlib.sha256(bytes.fromhex("038c78d491")).hexdigest()
    assert hashing.sha256_key("123456") == int(expected, 16)
    assert hashing.sha256_point(1, 1) == int(hashlib.sha256(bytes([29])).hexdigest(), 16)


def test_the_64_bit_hash_is_xxh3_of_the_utf8_bytes() -> None:
    # The published test vector of XXH3 for no input and seed 0.
    assert hashing.hash_text("") == 0x2D06800538D394C2
    assert hashing.hash_text("é") != hashing.hash_text("\udce9")


@pytest.mark.parametrize(
    ("key", "number"),
    [("0", 0), ("7", 7), ("000123", 123), ("123456", 123456), ("9" * 20, 10**20 - 1)],
)
def test_a_key_of_digits_is_read_as_an_integer(key: str, number: int) -> None:
    assert hashing.key_number(key) == number


@pytest.mark.parametrize(
    "key", ["", "-1", "+1", " 1", "1_000", "1.0", "abc", "²", "٣", "9" * 21, "9" * 10_000]
)
def test_a_key_that_is_not_an_integer_is_hashed_to_one(key: str) -> None:
    assert hashing.key_number(key) == hashing.hash_text(key)


@given(st.text(st.characters(), max_size=40))
def test_every_text_has_a_64_bit_hash_even_with_lone_surrogates(key: str) -> None:
    assert 0 <= hashing.hash_text(key) < 1 << 64
    assert hashing.sha256_key(key) < 1 << 256


@given(st.integers(1, 1000), st.integers(1, 8192))
def test_points_are_64_bits(i: int, j: int) -> None:
    assert 0 <= hashing.hash_pair(i, j) < 1 << 64
