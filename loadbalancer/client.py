"""Talks to a running load balancer, for the commands `rep`, `add`, `rm` and `get`."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import aiohttp

CONNECT_WITHIN = 5.0
"""Seconds to reach the load balancer; an answer may take as long as a container takes to start."""


class CommandError(Exception):
    """The command failed; the text says why."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer."""

    status: int
    body: bytes


def call(url: str, method: str, path: str, token: str | None, payload: Any = None) -> Any:
    """Call one of the load balancer's own endpoints.

    Args:
        url: Where the load balancer is.
        method: HTTP method.
        path: Of the endpoint.
        token: Admin token, or None.
        payload: What to send as JSON, or None.

    Returns:
        The `message` of the answer.

    Raises:
        CommandError: It cannot be reached, or says no.
    """
    fetched = asyncio.run(_fetch(url, method, path, token, payload))
    try:
        answer = json.loads(fetched.body)
        message, status = answer["message"], answer["status"]
    except (ValueError, TypeError, KeyError):
        raise CommandError(f"{url} is no load balancer of this kind: it answered {fetched.status}") from None
    if status != "successful":
        raise CommandError(str(message))
    return message


def fetch(url: str, path: str, token: str | None) -> Fetched:
    """Get any path.

    Args:
        url: Where the load balancer is.
        path: Path and query.
        token: Admin token, or None.

    Raises:
        CommandError: It cannot be reached.
    """
    return asyncio.run(_fetch(url, "GET", path if path.startswith("/") else f"/{path}", token, None))


async def _fetch(url: str, method: str, path: str, token: str | None, payload: Any) -> Fetched:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_WITHIN)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.request(method, url.rstrip("/") + path, json=payload, allow_redirects=False) as answer,
        ):
            return Fetched(answer.status, await answer.read())
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
        raise CommandError(f"{url!r} is no URL: give one such as http://127.0.0.1:5000") from None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise CommandError(f"no load balancer answers at {url}: {error}") from None
