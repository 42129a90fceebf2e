"""Writing to a client: what one packet of a replica brings goes out in one, and heads say what comes next."""

import asyncio


class ClientWriter(asyncio.Protocol):
    """The writing half of a client's connection."""

    __slots__ = ("_corked", "_outgoing", "http_1_1", "keeps", "transport")

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.keeps = True
        """Whether the connection goes on after the present answer."""
        self.http_1_1 = True
        """Whether the client speaks HTTP/1.1 rather than 1.0."""
        self._corked = False
        self._outgoing: list[bytes] = []

    def write_head(self, lines: list[bytes], *, closes: bool) -> None:
        """Write the head of an answer, and say what becomes of the connection."""
        if closes:
            self.keeps = False
        self.write(b"".join([*lines, self._connection_lines()]))

    def write_whole(self, head: bytes, body: bytes) -> None:
        """Write a whole answer."""
        if self.keeps and self.http_1_1:
            self.transport.write(b"%b\r\n%b" % (head, body))
        else:
            self.transport.write(b"%b%b%b" % (head, self._connection_lines(), body))

    def _connection_lines(self) -> bytes:
        """The end of a head: what is said of the connection, and an empty line."""
        if not self.keeps:
            return b"connection: close\r\n\r\n"
        return b"\r\n" if self.http_1_1 else b"connection: keep-alive\r\n\r\n"

    def write(self, data: bytes) -> None:
        """Write a part of an answer."""
        if self._corked:
            self._outgoing.append(data)
        elif not self.transport.is_closing():
            self.transport.write(data)

    def cork(self) -> None:
        """Collect what is written, until `uncork`."""
        self._corked = True

    def uncork(self) -> None:
        """Send what was collected."""
        self._corked = False
        if self._outgoing:
            data = self._outgoing[0] if len(self._outgoing) == 1 else b"".join(self._outgoing)
            self._outgoing.clear()
            self.write(data)

    def close_half(self) -> None:
        """Nothing more comes from the replica."""
        if not self.transport.can_write_eof():
            self.close()  # TLS, as asyncio has it, knows no half of a connection
            return
        self.uncork()
        if not self.transport.is_closing():
            self.transport.write_eof()

    def close(self) -> None:
        """End when everything is written."""
        self.uncork()
        self.transport.close()

    def abort(self) -> None:
        """Break off: the client must not take what it has for the whole."""
        self.transport.abort()
