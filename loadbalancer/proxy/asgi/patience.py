"""How long an exchange may stand still, and for whom it waits: one time-out that is moved along.

The replica has `--response-timeout` from each sign of life to the next, the client `--idle-timeout`.
The client's slowness is never held against the replica, nor the other way round.
"""

import asyncio
from types import TracebackType
from typing import Self

from loadbalancer.proxy.asgi.client import ClientGoneError


class Patience:
    """A time-out that knows whose fault it is; used as `async with`.

    Args:
        replica: Seconds the replica may be silent.
        client: Seconds the client may neither send what it has announced nor take what it is sent.
        stream: Seconds a stream of events may be silent; 0: for ever.

    Raises:
        TimeoutError: On leaving, when the replica was silent for too long.
        ClientGoneError: On leaving, when the client was, or when it went away.
    """

    def __init__(self, replica: float, client: float, stream: float = 0.0) -> None:
        self._replica = replica
        self._client = client
        self._stream = stream or None
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        self._with_client = False
        self._over = False
        self._client_gone = False

    def with_replica(self, endless: bool = False) -> None:
        """From now on, the replica is waited for; a stream of events has a time limit of its own."""
        self._with_client = False
        self._move(self._stream if endless else self._replica)

    def with_client(self) -> None:
        """From now on, the client is waited for."""
        self._with_client = True
        self._move(self._client)

    def client_has_gone(self) -> None:
        """The client went away in the middle of its request: whatever fails now, fails because of that."""
        self._client_gone = True

    def _move(self, seconds: float | None) -> None:
        # An upload may still be moving when the exchange is over.
        if not self._over and not self._timeout.expired():
            self._timeout.reschedule(None if seconds is None else self._loop.time() + seconds)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            if self._with_client:
                raise ClientGoneError from None
            raise
        if error is not None and self._client_gone:
            raise ClientGoneError from error
