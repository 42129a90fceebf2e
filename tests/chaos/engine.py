"""A proxy in front of the Docker Engine's socket, which can make the engine unreachable."""

import asyncio
import contextlib
from pathlib import Path

SOCKET = Path("/var/run/docker.sock")
"""The socket of the real engine."""


class BreakableEngine:
    """Passes connections on to the real engine, unless it is closed.

    Args:
        path: Unix socket that clients of the engine connect to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open = True
        """Whether new connections reach the engine."""
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> "BreakableEngine":
        self._server = await asyncio.start_unix_server(self._accept, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self.cut()
        self._server.close()

    def cut(self) -> None:
        """Abort every connection, and refuse new ones until `open` is set again."""
        self.open = False
        for end in self._ends:
            end.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.open:
            writer.close()
            return
        try:
            engine_reader, engine_writer = await asyncio.open_unix_connection(SOCKET)
        except OSError:  # the engine itself is down
            writer.close()
            return
        self._ends |= {writer, engine_writer}
        await asyncio.gather(self._pump(reader, engine_writer), self._pump(engine_reader, writer))
        self._ends -= {writer, engine_writer}

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copy bytes from one side to the other until either closes."""
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()
