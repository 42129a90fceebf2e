"""The requests of `/add` and `/rm`: one model, which checks them and from which OpenAPI is made.

The model holds every bound. `read_change` reads JSON or a query into it, and turns its first fault into a
sentence that names the offender.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Self
from urllib.parse import parse_qsl

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from loadbalancer.errors import BadRequestError

MAX_BODY = 64 * 1024
"""Maximum bytes of a request body: room for a thousand hostnames."""

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"

Hostname = Annotated[str, Field(max_length=253, pattern=rf"^{_LABEL}(?:\.{_LABEL})*$")]
"""A hostname (RFC 1123, section 2.1)."""


class Change(BaseModel):
    """A number of replicas to add or remove, and the hostnames of some or all of them.

    `N` is accepted for `n`, and `replicas` for `hostnames`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: int = Field(
        ge=1,
        strict=True,
        validation_alias=AliasChoices("n", "N"),
        description="number of replicas to add or remove",
    )
    hostnames: tuple[Hostname, ...] = Field(
        (), validation_alias=AliasChoices("hostnames", "replicas"), description="hostnames of these replicas"
    )

    @model_validator(mode="after")
    def _check_repetition(self) -> Self:
        seen: set[str] = set()
        for hostname in self.hostnames:
            if hostname.lower() in seen:
                raise PydanticCustomError(
                    "repetition", "hostname '{name}' is given twice", {"name": hostname}
                )
            seen.add(hostname.lower())
        return self


_SENTENCES = {
    "extra_forbidden": "'{field}' is unknown: there are n and hostnames",
    "missing": "n is missing: how many replicas?",
    "int_type": "n must be an integer, not {value}",
    "greater_than_equal": "n must be at least 1, not {value}",
    "tuple_type": "hostnames must be a list of names, not {value}",
    "string_type": "hostnames must be a list of names, and {value} is none",
    "string_unicode": "{value} is not valid Unicode",
    "string_too_long": "{value} is not a valid hostname (RFC 1123)",
    "string_pattern_mismatch": "{value} is not a valid hostname (RFC 1123)",
}
"""The sentence for each type of error of the model."""


def read_change(body: bytes, query: str, *, too_many_names: str) -> Change:
    """Read and check a request of `/add` or `/rm`.

    Args:
        body: A JSON object with `n` (or `N`) and perhaps `hostnames` (or `replicas`). When it is empty, the
            query is read.
        query: The same as `n=2&hostnames=a,b`.
        too_many_names: The sentence for a request with more hostnames than n.

    Raises:
        BadRequestError: The request is not of that form. The text names the offender.
    """
    if body.strip() and query:
        raise BadRequestError("give n and hostnames either in the body or in the query, not in both")
    fields = _from_json(body) if body.strip() else _from_query(query)
    for field in Change.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            spellings = [name for name in field.validation_alias.choices if name in fields]
            if len(spellings) > 1:
                raise BadRequestError("'{}' and '{}' are the same: give one of them".format(*spellings))
    try:
        change = Change.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise BadRequestError(_sentence(error.errors())) from None
    if len(change.hostnames) > change.n:
        raise BadRequestError(too_many_names)
    return change


def _from_json(body: bytes) -> Mapping[str, Any]:
    try:
        fields = json.loads(body, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError):
        raise BadRequestError("the body is not JSON") from None
    if not isinstance(fields, dict):
        raise BadRequestError('the body must be a JSON object such as {"n": 2, "hostnames": ["a", "b"]}')
    return fields


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise BadRequestError(f"'{name}' is given twice")
        fields[name] = value
    return fields


def _from_query(query: str) -> Mapping[str, Any]:
    if not query:
        return {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict")
    except ValueError:
        raise BadRequestError(f"the query '{query}' is not of the form n=2&hostnames=a,b") from None
    fields = _without_repetition(pairs)
    for name in ("n", "N"):
        # Python refuses to convert thousands of digits. The model refuses a value that stays a text.
        if re.fullmatch(r"-?[0-9]{1,18}", fields.get(name, "")):
            fields[name] = int(fields[name])
    for name in ("hostnames", "replicas"):
        if name in fields:
            fields[name] = fields[name].split(",") if fields[name] else []
    return fields


def _sentence(faults: list[ErrorDetails]) -> str:
    """Describe the first fault. An unknown field comes first, because it may be a misspelt one."""
    fault = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    sentence = _SENTENCES.get(fault["type"])
    if sentence is None:
        return fault["msg"]
    return sentence.format(field=fault["loc"][0] if fault["loc"] else "", value=_show(fault["input"]))


def _show(value: Any) -> str:
    """Write a value as JSON, in at most 80 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"
