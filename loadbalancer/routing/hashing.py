"""The hash functions of the rings: H gives the position of a key, Φ gives the position of a virtual server.

The classic functions are the polynomials of a well-known coursework, so that its experiments can be repeated.
They need integers, so a key that is not an integer is hashed to one first. Unlike Python's own `hash`, every
function here gives the same result on every machine and in every process.
"""

import struct
from hashlib import sha256

from xxhash import xxh3_64_intdigest

MAX_DIGITS = 20
"""Maximum length of a key that is read as an integer. Longer keys are hashed, which bounds the cost."""

PAIR_SEED = 2
"""Seed of `hash_pair`. It differs from that of `hash_text`. The figures in `ring` hold for it."""

_pack_pair = struct.Struct("<II").pack


def hash_text(key: str) -> int:
    """H of `default`: 64-bit hash (XXH3, seed 0) of the key's UTF-8 bytes."""
    try:
        return xxh3_64_intdigest(key.encode())
    except UnicodeEncodeError:  # rare, and passing the error handler in every call costs more
        return xxh3_64_intdigest(key.encode("utf-8", "surrogatepass"))


def hash_pair(i: int, j: int) -> int:
    """Hash i and j, 32 bits each, little-endian (64-bit XXH3, seed 2), to order the members of `default`."""
    return xxh3_64_intdigest(_pack_pair(i, j), PAIR_SEED)


def key_number(key: str) -> int:
    """Convert a key to an integer for the classic functions.

    Args:
        key: Up to `MAX_DIGITS` ASCII digits are read as an integer. Any other key is hashed.
    """
    if len(key) <= MAX_DIGITS and key.isascii() and key.isdigit():
        return int(key)
    return hash_text(key)


def classic_key(key: str) -> int:
    """H of `classic`: r² + 2r + 17."""
    r = key_number(key)
    return r * r + 2 * r + 17


def classic_point(i: int, j: int) -> int:
    """Φ of `classic`: i² + j² + 2j + 25."""
    return i * i + j * j + 2 * j + 25


def modified_key(key: str) -> int:
    """H of `classic-modified`: 1427r² + 2503r + 2003."""
    r = key_number(key)
    return 1427 * r * r + 2503 * r + 2003


def modified_point(i: int, j: int) -> int:
    """Φ of `classic-modified`: 1249i² + 2287j² + 1663j + 2287."""
    return 1249 * i * i + 2287 * j * j + 1663 * j + 2287


def sha256_key(key: str) -> int:
    """H of `classic-sha256`: SHA-256 of the classic polynomial."""
    return _sha256(classic_key(key))


def sha256_point(i: int, j: int) -> int:
    """Φ of `classic-sha256`: SHA-256 of the classic polynomial."""
    return _sha256(classic_point(i, j))


def _sha256(number: int) -> int:
    """Hash a number, written as big-endian bytes without leading zeros, to a big-endian integer."""
    size = (number.bit_length() + 7) // 8
    return int.from_bytes(sha256(number.to_bytes(size, "big")).digest(), "big")
