"""The connection to a Docker Engine: every call is bounded in time and fails with a sentence.

`aiodocker` speaks the Engine API; what is added here is what a person needs when it goes wrong.
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
"""Seconds for one call that does not wait for a container: an engine under load can be slow."""

UNREACHABLE = 900
"""The status that aiodocker gives to a call that did not reach the engine."""

NOT_FOUND, CONFLICT = 404, 409


def connect() -> Docker:
    """Make a client of the engine that `DOCKER_HOST`, the Docker context or the usual socket names.

    Raises:
        BackendError: There is no engine, or its address makes no sense.
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
    """Pass over calls about what the engine does not know any more."""
    try:
        yield
    except DockerError as error:
        if error.status != NOT_FOUND:
            raise


@asynccontextmanager
async def engine_call(doing: str, within: float | None = CALL_WITHIN) -> AsyncIterator[None]:
    """Bound calls of the engine in time, and tell their failures in words.

    Args:
        doing: What is done, as in "cannot …".
        within: Seconds; None when the caller bounds it.

    Raises:
        EngineAwayError: The engine cannot be reached, or does not answer.
        BackendError: It refuses.
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
