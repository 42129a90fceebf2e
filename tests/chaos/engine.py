"""A Docker Engine that goes away and comes back, as far as those can tell who reach it by this road."""

import asyncio
import contextlib
from pathlib import Path

SOCKET = Path("/var/run/docker.sock")


class BreakableEngine:
    """A road to the real engine that can be closed: to those who take it, the engine is gone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open = True
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> "BreakableEngine":
        self._server = await asyncio.start_unix_server(self._joined, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self.cut()
        self._server.close()

    def cut(self) -> None:
        """Break every connection and take no more."""
        self.open = False
        for end in self._ends:
            end.transport.abort()

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.open:
            writer.close()
            return
        try:
            engine_reader, engine_writer = await asyncio.open_unix_connection(SOCKET)
        except OSError:  # the engine itself is gone
            writer.close()
            return
        self._ends |= {writer, engine_writer}
        await asyncio.gather(self._pump(reader, engine_writer), self._pump(engine_reader, writer))
        self._ends -= {writer, engine_writer}

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()
