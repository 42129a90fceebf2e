"""The body of a request on its way to a replica, and perhaps to a second one."""

from collections.abc import AsyncIterator

from loadbalancer.errors import BodyTooLargeError
from loadbalancer.proxy.asgi.client import Client, ClientGoneError
from loadbalancer.proxy.asgi.patience import Patience


class RequestBody:
    """Streams a body; its beginning is kept, so that a short one can be sent again.

    Args:
        client: Who sends it.
        limit: Bytes that it may have; 0: no bound.
    """

    def __init__(self, client: Client, limit: int) -> None:
        self._client = client
        self._limit = limit
        self._size = 0
        self.too_large: BodyTooLargeError | None = None
        """Set when it turned out to be longer, which breaks off what is under way with it."""
        self._begun = False
        self._beginning: bytes | None = None
        self.at_hand = True
        """Whether all that has been read of it can be sent again."""

    async def stream(self, patience: Patience) -> AsyncIterator[bytes] | None:
        """The whole body from its beginning, or None if there is none.

        Args:
            patience: Told for whom the exchange waits.

        Raises:
            BodyTooLargeError: It is longer than it may be.
        """
        if not self._begun:
            patience.with_client()
            self._beginning = await self._read()
            self._begun = True
        return None if self._beginning is None else self._chunks(self._beginning, patience)

    async def _read(self) -> bytes | None:
        chunk = await self._client.read()
        self._size += len(chunk or b"")
        if self._limit and self._size > self._limit:
            self.too_large = BodyTooLargeError(self._limit)
            raise self.too_large
        return chunk

    async def _chunks(self, chunk: bytes | None, patience: Patience) -> AsyncIterator[bytes]:
        while chunk is not None:
            patience.with_replica()
            yield chunk
            patience.with_client()
            try:
                chunk = await self._read()
            except ClientGoneError:
                patience.client_gone = True
                raise
            self.at_hand = self.at_hand and chunk is None
        patience.with_replica()
