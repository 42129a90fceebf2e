"""An HTTP client of a running load balancer, for the commands `rep`, `add`, `rm` and `get`."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import aiohttp

CONNECT_TIMEOUT = 5.0
"""Maximum seconds to connect. The answer has no time limit, because containers may start slowly."""


class CommandError(Exception):
    """The command failed. The text gives the reason."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The status and the body of an answer."""

    status: int
    body: bytes


def call(url: str, method: str, path: str, token: str | None, payload: Any = None) -> Any:
    """Call an endpoint of the admin API.

    Args:
        url: URL of the load balancer.
        method: HTTP method.
        path: Path of the endpoint.
        token: Admin token, or None.
        payload: Value to send as JSON, or None.

    Returns:
        The `message` of the answer.

    Raises:
        CommandError: The load balancer cannot be reached, or it refuses the request.
    """
    fetched = asyncio.run(_fetch(url, method, path, token, payload))
    try:
        answer = json.loads(fetched.body)
        message, status = answer["message"], answer["status"]
    except (ValueError, TypeError, KeyError):
        raise CommandError(f"{url} is not such a load balancer: it answered {fetched.status}") from None
    if status != "successful":
        raise CommandError(str(message))
    return message


def fetch(url: str, path: str, token: str | None) -> Fetched:
    """Send GET for any path.

    Args:
        url: URL of the load balancer.
        path: Path and query.
        token: Admin token, or None.

    Raises:
        CommandError: The load balancer cannot be reached.
    """
    return asyncio.run(_fetch(url, "GET", path if path.startswith("/") else f"/{path}", token, None))


async def _fetch(url: str, method: str, path: str, token: str | None, payload: Any) -> Fetched:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.request(method, url.rstrip("/") + path, json=payload, allow_redirects=False) as answer,
        ):
            return Fetched(answer.status, await answer.read())
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
        raise CommandError(f"{url!r} is not an HTTP URL such as http://127.0.0.1:5000") from None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise CommandError(f"cannot reach the load balancer at {url}: {error}") from None
