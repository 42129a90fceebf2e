"""The client's side of one exchange, as ASGI offers it.

It knows whether the client is still there, whether its whole request has come, and whether an answer
has begun: after that an error can only be shown by breaking off.
"""

import asyncio
from typing import cast

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent

from loadbalancer.answers import Answer, encode
from loadbalancer.proxy.headers import Header


class ClientGoneError(Exception):
    """The client has closed the connection, or has been silent for too long: nobody waits for an answer."""


class Client:
    """Reads a request's body and writes its answer.

    Args:
        receive: ASGI's receive.
        send: ASGI's send; it returns once the client can take more.
    """

    def __init__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        self._receive = receive
        self._send = send
        self._all_received = asyncio.Event()
        self.answering = False
        """Whether an answer has begun."""

    async def read(self) -> bytes | None:
        """The next part of the body, or None after the last.

        Raises:
            ClientGoneError: The client has gone before the end of its request.
        """
        while not self._all_received.is_set():
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientGoneError
            if not message["more_body"]:
                self._all_received.set()
            if message["body"]:
                return message["body"]
        return None

    async def gone(self) -> None:
        """Return when the client has gone; it is only looked for once the whole request has come."""
        await self._all_received.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def begin(self, status: int, headers: list[Header], reason: str | None = None) -> None:
        """Send the head of the answer.

        Args:
            status: As it is sent.
            headers: As they are sent.
            reason: The phrase beside the status; None for the standard one. ASGI has no place for it.
        """
        self.answering = True
        start = {"type": "http.response.start", "status": status, "headers": headers, "reason": reason}
        await self._send(cast(ASGISendEvent, start))

    async def write(self, chunk: bytes) -> None:
        """Send a part of the answer's body."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        """Finish the answer. Without it the connection breaks, so that the client knows."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def answer(self, answer: Answer, *more: Header) -> None:
        """Send a whole answer of the load balancer's own.

        Args:
            answer: The answer.
            more: Further headers.
        """
        await self.begin(answer.status, [*encode(answer), *more])
        await self.write(answer.body)
        await self.end()
