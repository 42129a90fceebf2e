"""The body of a request on its way to a replica, and perhaps to a second one."""

from collections.abc import AsyncIterator

from loadbalancer.errors import BodyTooLargeError
from loadbalancer.proxy.asgi.client import Client, ClientGoneError
from loadbalancer.proxy.asgi.patience import Patience


class RequestBody:
    """Streams a body; its beginning is kept, so that a short one can be sent again.

    Args:
        client: Sends it.
        limit: Bytes that it may have; 0: no bound.
        length: Bytes that it is announced to have; None if that is not known.

    Raises:
        BodyTooLargeError: It is announced to be longer than it may be.
    """

    def __init__(self, client: Client, limit: int, length: int | None) -> None:
        if limit and length is not None and length > limit:
            raise BodyTooLargeError(limit)
        self._client = client
        self._limit = limit
        self._length = length
        self._size = 0
        self.too_large: BodyTooLargeError | None = None
        """Set when it turned out to be longer, which breaks off what is under way with it."""
        self._begun = False
        self._beginning: bytes | None = None
        self.at_hand = True
        """Whether all that has been read of it can be sent again."""

    @property
    def whole(self) -> bool:
        """Whether all of it has come and can be sent again."""
        return self._begun and self.at_hand and (self._beginning is None or self._size == self._length)

    async def stream(self, patience: Patience) -> AsyncIterator[bytes] | None:
        """The whole body from its beginning, or None if there is none.

        Args:
            patience: Told for whom the exchange waits.

        Raises:
            BodyTooLargeError: It is longer than it may be.
            ClientGoneError: The client has gone.
        """
        if not self._begun:
            patience.with_client()
            self._beginning = await self._read()
            self._begun = True
        return None if self._beginning is None else self._chunks(self._beginning, patience)

    async def when_asked_for(self, patience: Patience) -> AsyncIterator[bytes]:
        """The same, but nothing of it is read from the client before the first part is wanted.

        Args:
            patience: Told for whom the exchange waits.
        """
        try:
            chunks = await self.stream(patience)
        except ClientGoneError:
            patience.client_has_gone()
            raise
        patience.with_replica()
        if chunks is not None:
            async for chunk in chunks:
                yield chunk

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
                patience.client_has_gone()
                raise
            self.at_hand = self.at_hand and chunk is None
        patience.with_replica()
