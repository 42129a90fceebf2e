"""Requests of `/add` and `/rm`: the checks of the model, their sentences, and the model in OpenAPI."""

import json
from typing import Any

import pytest

from loadbalancer.admin.application import create_admin
from loadbalancer.admin.changes import Change, read_change
from loadbalancer.answers import answer
from loadbalancer.errors import BadRequestError
from loadbalancer.telemetry.events import EventStream
from loadbalancer.telemetry.metrics import Metrics
from tests.unit.fleet.fakes import FakeBackend, make_fleet


def read(body: str = "", query: str = "") -> Change:
    return read_change(body.encode(), query, too_many_names="too many names")


@pytest.mark.parametrize(
    ("body", "query"),
    [
        ('{"n": 2, "hostnames": ["a", "b.c"]}', ""),
        ('{"N": 2, "replicas": ["a", "b.c"]}', ""),
        (' {"n": 2, "replicas": ["a", "b.c"]}\n', ""),
        ("", "n=2&hostnames=a,b.c"),
        ("", "N=2&replicas=a%2Cb.c"),
    ],
)
def test_every_spelling_gives_the_same_change(body: str, query: str) -> None:
    assert read(body, query) == read('{"n": 2, "hostnames": ["a", "b.c"]}')


@pytest.mark.parametrize(
    ("body", "query"), [('{"n": 2}', ""), ('{"n": 2, "hostnames": null}', ""), ("", "n=2&hostnames=")]
)
def test_hostnames_are_optional(body: str, query: str) -> None:
    assert read(body, query).hostnames == ()


@pytest.mark.parametrize(
    ("body", "query", "sentence"),
    [
        ('{"n": 1}', "n=1", "give n and hostnames either in the body or in the query, not in both"),
        ('{"replicas": [], "hostnames": [], "n": 1}', "", "'hostnames' and 'replicas' are the same"),
        ('{"hostname": ["a"]}', "", "'hostname' is unknown: there are n and hostnames"),
        ('{"n": 0, "x": 1}', "", "'x' is unknown"),
        ('{"n": 1, "hostnames": {"a": 1}}', "", 'hostnames must be a list of names, not {"a": 1}'),
        ('{"n": 1, "hostnames": ["a", "b"]}', "", "too many names"),
        (
            '{{"n": 1, "hostnames": ["{}"]}}'.format(".".join(["a" * 60] * 5)),
            "",
            "is not a valid hostname (RFC 1123)",
        ),
        ('{"n": 1, "hostnames": ["\\ud800"]}', "", '"\ud800" is not valid Unicode'),
        ('{"n": 1, "\\ud800": 1}', "", "is not valid Unicode"),
        ('{"n": 1, "\\ud800": 1, "\\ud800": 1}', "", "is given twice"),
        ("", "n=1_0", 'n must be an integer, not "1_0"'),
        ("", "n=+1", "n must be an integer"),
        ("", "n=1.0", 'n must be an integer, not "1.0"'),
    ],
)
def test_a_refusal_names_the_offender(body: str, query: str, sentence: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        read(body, query)
    message = json.loads(answer(refused.value).body)["message"]
    assert message.startswith("<Error> ")
    assert sentence in message


async def test_openapi_has_the_bounds_of_the_model() -> None:
    admin = create_admin(make_fleet(FakeBackend())[0], Metrics(), EventStream(), None)
    document = await (await admin.test_client().get("/lb/openapi.json")).get_json()
    schema = json.loads(json.dumps(Change.model_json_schema()))
    for path, method in (("/add", "post"), ("/add", "get"), ("/rm", "delete"), ("/rm", "get")):
        operation = document["paths"][path][method]
        assert operation["requestBody"]["content"]["application/json"]["schema"] == schema
        parameters: dict[str, Any] = {parameter["name"]: parameter for parameter in operation["parameters"]}
        assert parameters["n"]["schema"]["minimum"] == 1
        assert parameters["hostnames"]["explode"] is False, "a query has one list, separated by commas"
        items = parameters["hostnames"]["schema"]["items"]
        assert items == schema["properties"]["hostnames"]["items"]
        assert items["maxLength"] == 253
        assert items["pattern"].startswith("^[A-Za-z0-9]")
