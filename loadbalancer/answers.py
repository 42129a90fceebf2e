"""Answers of the load balancer itself: an error or a message rendered as HTTP."""

import json
from dataclasses import dataclass, field
from email.utils import formatdate

from loadbalancer.errors import LoadBalancerError


@dataclass(frozen=True)
class Answer:
    """An answer of the load balancer itself, ready to be sent by whichever lane must send it."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = field(default=())


def answer(error: BaseException) -> Answer:
    """Turn an error into the answer that a client sees.

    Args:
        error: Any exception; only the text of a `LoadBalancerError` is shown.
    """
    if not isinstance(error, LoadBalancerError):
        return failure(500, "the load balancer failed in a way it did not foresee: see its log")
    return failure(error.status, str(error), error.headers)


def failure(status: int, sentence: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """An answer in the contract's form for failures: `{"message": "<Error> …", "status": "failure"}`.

    Args:
        status: The HTTP status code.
        sentence: What is wrong, in words, naming the offender.
        headers: Further headers, such as `Retry-After`.
    """
    body = json.dumps({"message": f"<Error> {sentence}", "status": "failure"}, ensure_ascii=False).encode()
    return Answer(status, body, (("Content-Type", "application/json"), *headers))


def encode(answer: Answer) -> list[tuple[bytes, bytes]]:
    """The headers of an answer as they are sent, names in lower case.

    Args:
        answer: The answer; its length and the date are added.
    """
    headers = [*answer.headers, ("Content-Length", str(len(answer.body))), ("Date", formatdate(usegmt=True))]
    return [(name.lower().encode(), value.encode()) for name, value in headers]
