"""Answers of the load balancer itself: an error or a message, rendered as HTTP."""

import json
from dataclasses import dataclass, field
from email.utils import formatdate

from loadbalancer.errors import LoadBalancerError


@dataclass(frozen=True)
class Answer:
    """An answer of the load balancer itself, which either lane can send."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = field(default=())


def answer(error: BaseException) -> Answer:
    """Make the answer that a client gets for an error.

    Args:
        error: Any exception. The client sees the text of a `LoadBalancerError` only.
    """
    if not isinstance(error, LoadBalancerError):
        return failure(500, "the load balancer failed unexpectedly: its log has the reason")
    return failure(error.status, str(error), error.headers)


def failure(status: int, sentence: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """Make the answer for a failure: `{"message": "<Error> …", "status": "failure"}`.

    Args:
        status: The HTTP status code.
        sentence: The reason, which names the offender.
        headers: Further headers, such as `Retry-After`.
    """
    text = json.dumps({"message": f"<Error> {sentence}", "status": "failure"}, ensure_ascii=False)
    # A sentence may quote half of a surrogate pair. UTF-8 cannot encode it, but JSON can escape it.
    body = text.encode(errors="backslashreplace")
    return Answer(status, body, (("Content-Type", "application/json"), *headers))


def encode(answer: Answer) -> list[tuple[bytes, bytes]]:
    """Encode the headers of an answer, with names in lower case, and add its length and the date.

    Args:
        answer: The answer.
    """
    headers = [*answer.headers, ("Content-Length", str(len(answer.body))), ("Date", formatdate(usegmt=True))]
    return [(name.lower().encode(), value.encode()) for name, value in headers]
