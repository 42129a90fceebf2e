"""The connection to a Docker Engine. Every call has a time limit and fails with a sentence.

`aiodocker` implements the Engine API. This module adds time limits, and error messages that help a person.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import aiohttp
from aiodocker import Docker
from aiodocker.exceptions import DockerError

from loadbalancer.errors import BackendError, EngineAwayError

CONNECT_WITHIN = 5.0
"""Seconds in which the engine must accept a connection."""

CALL_WITHIN = 20.0
"""Seconds for a call that does not wait for a container. An engine under load can be slow."""

UNREACHABLE = 900
"""The status that aiodocker reports for a call that did not reach the engine."""

NOT_FOUND, CONFLICT = 404, 409


def connect() -> Docker:
    """Make a client for the engine that `DOCKER_HOST`, the Docker context or the usual socket leads to.

    Raises:
        BackendError: There is no engine, or its address is invalid.
    """
    try:
        return Docker(timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_WITHIN))
    except (AssertionError, ValueError, DockerError) as error:
        why = f" ({error})" if str(error) else ""
        raise BackendError(
            f"there is no Docker Engine here{why}: start it, mount its socket, or name it in DOCKER_HOST; "
            "or run replicas as processes with --backend process"
        ) from None


@contextmanager
def unless_missing() -> Iterator[None]:
    """Ignore the failure of a call because its container, network or volume does not exist."""
    try:
        yield
    except DockerError as error:
        if error.status != NOT_FOUND:
            raise


@asynccontextmanager
async def engine_call(doing: str, within: float | None = CALL_WITHIN) -> AsyncIterator[None]:
    """Limit the time of engine calls, and turn their failures into sentences.

    Args:
        doing: The purpose of the calls, as a verb that follows "cannot".
        within: Time limit in seconds; None when the caller sets one.

    Raises:
        EngineAwayError: The engine cannot be reached, or does not answer.
        BackendError: The engine refuses.
    """
    try:
        async with asyncio.timeout(within):
            yield
    except TimeoutError:
        raise EngineAwayError(f"cannot {doing}: the Docker Engine did not answer within {within} s") from None
    except DockerError as error:
        if error.status == UNREACHABLE:
            raise EngineAwayError(
                f"cannot {doing}: the Docker Engine cannot be reached: is it running, "
                f"and may this user use its socket? ({error.message})"
            ) from error
        raise BackendError(f"cannot {doing}: {error.message}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise EngineAwayError(
            f"cannot {doing}: the connection to the Docker Engine broke: {error}"
        ) from error
