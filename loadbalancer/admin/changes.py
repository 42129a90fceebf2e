"""What `/add` and `/rm` are asked for: read from JSON or a query, and checked before anything is done."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from loadbalancer.errors import BadRequestError

MAX_BODY = 64 * 1024
"""Bytes of a request's body: room for a thousand names."""

_COUNT, _NAMES = ("n", "N"), ("hostnames", "replicas")

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOSTNAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_MAX_HOSTNAME = 253


@dataclass(frozen=True, slots=True)
class Change:
    """How many replicas to add or remove.

    Args:
        n: How many, at least 1.
        hostnames: The names of some or all of them.
    """

    n: int
    hostnames: tuple[str, ...]


def read_change(body: bytes, query: str, *, too_many_names: str) -> Change:
    """Read and check what a request asks for.

    Args:
        body: JSON object with `n` (or `N`) and perhaps `hostnames` (or `replicas`); empty: see the query.
        query: The same as `n=2&hostnames=a,b`.
        too_many_names: The sentence when there are more names than n.

    Raises:
        BadRequestError: It is not of that form; the text names the offender.
    """
    if body.strip() and query:
        raise BadRequestError("give n and hostnames either in the body or in the query, not in both")
    fields = _from_json(body) if body.strip() else _from_query(query)
    for field in fields:
        if field not in (*_COUNT, *_NAMES):
            raise BadRequestError(f"'{field}' is unknown: there are n and hostnames")
    n = _count(_one_of(fields, _COUNT))
    names = _names(_one_of(fields, _NAMES))
    if len(names) > n:
        raise BadRequestError(too_many_names)
    _check_names(names)
    return Change(n, tuple(names))


def _from_json(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError):
        raise BadRequestError("the body is not JSON") from None
    if not isinstance(fields, dict):
        raise BadRequestError('the body must be a JSON object such as {"n": 2, "hostnames": ["a", "b"]}')
    return fields


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise BadRequestError(f"'{repeated}' is given twice")
    return fields


def _from_query(query: str) -> dict[str, Any]:
    try:
        pairs = (
            parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict") if query else []
        )
    except ValueError:
        raise BadRequestError(f"the query '{query}' is not of the form n=2&hostnames=a,b") from None
    fields: dict[str, Any] = _without_repetition(pairs)
    for name in _COUNT:
        text = fields.get(name, "")
        # At most 18 digits: Python refuses to read thousands of them.
        if re.fullmatch(r"-?[0-9]{1,18}", text):
            fields[name] = int(text)
    for name in _NAMES:
        if name in fields:
            fields[name] = fields[name].split(",") if fields[name] else []
    return fields


def _one_of(fields: dict[str, Any], names: Sequence[str]) -> Any:
    """The value under whichever of two names it was given; None if under neither."""
    given = [name for name in names if name in fields]
    if len(given) > 1:
        raise BadRequestError(f"'{given[0]}' and '{given[1]}' are the same: give one of them")
    return fields[given[0]] if given else None


def _count(value: Any) -> int:
    if value is None:
        raise BadRequestError("n is missing: how many replicas?")
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadRequestError(f"n must be an integer, not {_show(value)}")
    if value < 1:
        raise BadRequestError(f"n must be at least 1, not {value}")
    return value


def _names(value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadRequestError(f"hostnames must be a list of names, not {_show(value)}")
    for name in value:
        if not isinstance(name, str):
            raise BadRequestError(f"hostnames must be a list of names, and {_show(name)} is none")
    return value


def _check_names(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if len(name) > _MAX_HOSTNAME or not _HOSTNAME.fullmatch(name):
            raise BadRequestError(f"{_show(name)} is not a valid hostname (RFC 1123)")
        if name.lower() in seen:
            raise BadRequestError(f"hostname '{name}' is given twice")
        seen.add(name.lower())


def _show(value: Any) -> str:
    """A value as JSON, cut to what fits a sentence."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"
