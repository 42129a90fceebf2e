"""Every row of the contract of `/rep`, `/add` and `/rm`, with real replicas. A refusal changes nothing."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness import LoadBalancer, Reply

JSON = {"Content-Type": "application/json"}

TOO_MANY_FOR_ADD = "<Error> Length of hostname list is more than newly added instances"
TOO_MANY_FOR_RM = "<Error> Length of hostname list is more than removable instances"


@pytest.fixture(scope="module")
def lb() -> Iterator[LoadBalancer]:
    with LoadBalancer("--max-replicas", "20", "--heartbeat-interval", "0.2") as running:
        yield running


@pytest.fixture(autouse=True)
def three(lb: LoadBalancer) -> Iterator[None]:
    """Each test begins with the same three replicas."""
    yield
    extra = [name for name in lb.members() if not re.fullmatch(r"Server-[123]", name)]
    if extra:
        assert change(lb, "DELETE", {"n": len(extra), "hostnames": extra}).status == 200
    missing = [name for name in ("Server-1", "Server-2", "Server-3") if name not in lb.members()]
    if missing:
        assert change(lb, "POST", {"n": len(missing), "hostnames": missing}).status == 200


def change(lb: LoadBalancer, method: str, body: Any) -> Reply:
    return lb.call(method, "/add" if method == "POST" else "/rm", body, JSON)


def test_rep_lists_the_first_replicas_by_name(lb: LoadBalancer) -> None:
    reply = lb.call("GET", "/rep")
    assert reply.status == 200
    assert reply.json == {
        "message": {"N": 3, "replicas": ["Server-1", "Server-2", "Server-3"]},
        "status": "successful",
    }


def test_every_replica_answers_home(lb: LoadBalancer) -> None:
    answers = {lb.call("GET", "/home").body for _ in range(60)}
    assert {json.loads(answer)["message"] for answer in answers} == {
        f"Hello from Server: Server-{number}" for number in (1, 2, 3)
    }


def test_the_client_gets_the_answer_of_the_replica_to_an_unknown_path(lb: LoadBalancer) -> None:
    reply = lb.call("GET", "/other")
    assert reply.status == 400
    assert reply.json == {
        "message": "<Error> '/other' endpoint does not exist in server replicas",
        "status": "failure",
    }


def test_added_replicas_are_named_and_in_rotation(lb: LoadBalancer) -> None:
    reply = change(lb, "POST", {"n": 4, "hostnames": ["S5", "S4"]})
    assert reply.status == 200
    assert reply.json["status"] == "successful"
    names = reply.json["message"]["replicas"]
    assert reply.json["message"]["N"] == len(names) == 7
    assert names[:5] == ["Server-1", "Server-2", "Server-3", "S5", "S4"]
    assert all(re.fullmatch(r"Server-\d{3}-\d{3}", name) for name in names[5:])
    assert {name for name, one in lb.state().items() if one["state"] == "up"} == set(names)


def test_rm_removes_the_named_replicas_and_random_others(lb: LoadBalancer) -> None:
    change(lb, "POST", {"n": 3, "hostnames": ["S1", "S2", "S3"]})
    reply = change(lb, "DELETE", {"n": 3, "hostnames": ["S2"]})
    assert reply.status == 200
    left = reply.json["message"]["replicas"]
    assert reply.json["message"]["N"] == len(left) == 3
    assert "S2" not in left
    assert set(lb.state()) == set(left), "the removed replicas are gone, and no longer draining"


def test_the_next_new_replica_gets_the_number_of_a_removed_one(lb: LoadBalancer) -> None:
    change(lb, "DELETE", {"n": 1, "hostnames": ["Server-2"]})
    change(lb, "POST", {"n": 1, "hostnames": ["Newcomer"]})
    assert lb.state()["Newcomer"]["number"] == 2
    assert lb.members() == ["Server-1", "Newcomer", "Server-3"]


@pytest.mark.parametrize(
    "body",
    [{"N": 1, "replicas": ["other-names"]}, {"n": 1, "replicas": ["x1"]}, {"N": 1, "hostnames": ["x2"]}],
)
def test_other_spellings_are_accepted(lb: LoadBalancer, body: dict[str, Any]) -> None:
    reply = change(lb, "POST", body)
    assert reply.status == 200
    assert reply.json["message"]["replicas"][-1] in ("other-names", "x1", "x2")


def test_get_works_with_a_body_or_a_query_for_plain_curl(lb: LoadBalancer) -> None:
    assert lb.call("GET", "/add", {"n": 1, "hostnames": ["g1"]}).json["message"]["N"] == 4
    assert lb.call("GET", "/add?n=2&hostnames=g2,g3").json["message"]["N"] == 6
    reply = lb.call("GET", "/rm?n=3&hostnames=g1,g2,g3")
    assert reply.json["message"] == {"N": 3, "replicas": ["Server-1", "Server-2", "Server-3"]}


REFUSED_BODIES: list[tuple[str, bytes, str]] = [
    ("POST", b'{"n": 1, "hostnames": ["a", "b"]}', TOO_MANY_FOR_ADD),
    ("DELETE", b'{"n": 1, "hostnames": ["Server-1", "Server-2"]}', TOO_MANY_FOR_RM),
    *[
        (method, body, sentence)
        for method in ("POST", "DELETE")
        for body, sentence in [
            (b"n=1", "the body is not JSON"),
            (b"[1]", "the body must be a JSON object"),
            (b"\xff\xfe", "the body is not JSON"),
            (b"[" * 60_000, "the body is not JSON"),
            (b"", "n is missing"),
            (b"{}", "n is missing"),
            (b'{"hostnames": ["a"]}', "n is missing"),
            (b'{"n": null}', "n is missing"),
            (b'{"n": "2"}', 'n must be an integer, not "2"'),
            (b'{"n": 1.5}', "n must be an integer, not 1.5"),
            (b'{"n": true}', "n must be an integer, not true"),
            (b'{"n": NaN}', "n must be an integer, not NaN"),
            (b'{"n": 0}', "n must be at least 1, not 0"),
            (b'{"n": -3}', "n must be at least 1, not -3"),
            (b'{"n": 1, "N": 2}', "'n' and 'N' are the same"),
            (b'{"n": 1, "n": 2}', "'n' is given twice"),
            (b'{"n": 1, "hostname": ["a"]}', "'hostname' is unknown"),
            (b'{"n": 1, "hostnames": "a"}', "hostnames must be a list of names"),
            (b'{"n": 1, "hostnames": [7]}', "hostnames must be a list of names, and 7 is none"),
            (b'{"n": 2, "hostnames": ["a", "a"]}', "hostname 'a' is given twice"),
            (b'{"n": 2, "hostnames": ["a", "A"]}', "hostname 'A' is given twice"),
            (b'{"n": 1, "hostnames": [""]}', '"" is not a valid hostname'),
            (b'{"n": 1, "hostnames": ["-a"]}', '"-a" is not a valid hostname'),
            (b'{"n": 1, "hostnames": ["a_b"]}', '"a_b" is not a valid hostname'),
            (b'{"n": 1, "hostnames": ["a b; rm -rf"]}', "is not a valid hostname"),
            (b'{"n": 1, "hostnames": ["a\\nb"]}', "is not a valid hostname"),
            (b'{"n": 1, "hostnames": ["%s"]}' % (b"a" * 64), "is not a valid hostname"),
        ]
    ],
    ("POST", b'{"n": 1, "hostnames": ["Server-1"]}', "hostname 'Server-1' is already in use"),
    ("POST", b'{"n": 2, "hostnames": ["new", "server-2"]}', "hostname 'server-2' is already in use"),
    ("POST", b'{"n": 18}', "no slots left for 18 more replicas: there are 3 of at most 20"),
    ("POST", b'{"n": %d}' % 10**30, "no slots left"),
    ("DELETE", b'{"n": 1, "hostnames": ["stranger"]}', "hostname 'stranger' is not in the fleet"),
    ("DELETE", b'{"n": 4}', "cannot remove 4 replicas: there are only 3"),
    ("DELETE", b'{"n": 4, "hostnames": ["Server-1"]}', "cannot remove 4 replicas: there are only 3"),
]


@pytest.mark.parametrize(("method", "body", "sentence"), REFUSED_BODIES)
def test_a_refused_change_gives_the_reason_and_changes_nothing(
    lb: LoadBalancer, method: str, body: bytes, sentence: str
) -> None:
    before = [(one["hostname"], one["id"], one["state"]) for one in lb.state().values()]
    reply = change(lb, method, body)
    assert reply.status == 400
    assert reply.json["status"] == "failure"
    assert reply.json["message"].startswith("<Error> ")
    assert sentence in reply.json["message"]
    if sentence.startswith("<Error>"):
        assert reply.json["message"] == sentence
    assert [(one["hostname"], one["id"], one["state"]) for one in lb.state().values()] == before


@pytest.mark.parametrize(
    "query", ["n=x", "n", "n=1&n=2", "n=1&hostnames=a,,b", "n=1&m=2", "n=" + "9" * 5000, "n=1&hostnames=%ff"]
)
def test_a_refused_query_changes_nothing(lb: LoadBalancer, query: str) -> None:
    reply = lb.call("GET", f"/add?{query}")
    assert reply.status == 400
    assert reply.json["message"].startswith("<Error> ")
    assert lb.members() == ["Server-1", "Server-2", "Server-3"]


def test_a_body_that_is_too_long_is_refused(lb: LoadBalancer) -> None:
    reply = change(lb, "POST", b'{"n": 1, "hostnames": [' + b'"a", ' * 20_000 + b'"b"]}')
    assert (reply.status, reply.json["status"]) == (413, "failure")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("PUT", "/add", "POST"), ("POST", "/rm", "DELETE"), ("POST", "/rep", "GET"), ("DELETE", "/add", "GET")],
)
def test_the_answer_to_a_wrong_method_lists_the_allowed_ones(
    lb: LoadBalancer, method: str, path: str, allowed: str
) -> None:
    reply = lb.call(method, path, {"n": 1})
    assert (reply.status, reply.json["status"]) == (405, "failure")
    assert allowed in reply.headers["Allow"]


def test_an_unknown_path_under_lb_is_a_404(lb: LoadBalancer) -> None:
    reply = lb.call("GET", "/lb/nothing")
    assert (reply.status, reply.json) == (
        404,
        {"message": "<Error> '/lb/nothing' does not exist", "status": "failure"},
    )


def test_a_replica_that_cannot_start_is_a_500_and_nothing_remains(lb: LoadBalancer) -> None:
    with LoadBalancer(
        "--command",
        'sh -c \'case "$HOSTNAME" in bad*) echo "no licence" >&2; exit 3;; *) exec python -m server;; esac\'',
        replicas=1,
    ) as picky:
        reply = change(picky, "POST", {"n": 3, "hostnames": ["good1", "bad", "good2"]})
        assert reply.status == 500
        assert reply.json["status"] == "failure"
        assert "bad ended before its first heartbeat: exited with code 3" in reply.json["message"]
        assert "no licence" in reply.json["message"]
        assert list(picky.state()) == picky.members() == ["Server-1"]


def test_without_replicas_there_is_a_503_with_retry_after(lb: LoadBalancer) -> None:
    with LoadBalancer(replicas=0) as empty:
        reply = empty.call("GET", "/home")
        assert reply.status == 503
        assert reply.headers["Retry-After"] == "1"
        assert reply.json["status"] == "failure"
        assert empty.call("GET", "/lb/health").status == 503
        assert empty.call("GET", "/rep").json["message"] == {"N": 0, "replicas": []}
