"""`python -m server` runs the sample replica.

The replica does not depend on the load balancer. Environment variables configure it: `PORT` (default 5000)
and `HOST` (default 127.0.0.1) are the address to serve on, and `SERVER_ID` (default: the machine's hostname)
is its name.
"""

import asyncio
import os
import signal
import socket
import sys

import hypercorn.asyncio
import uvloop
from hypercorn.config import Config

from server.app import create_app

GRACE = 3.0
"""Maximum seconds for requests in flight after SIGTERM."""


def main() -> int:
    """Serve until SIGTERM or SIGINT, and return the exit status."""
    host, port = os.environ.get("HOST", "127.0.0.1"), os.environ.get("PORT", "5000")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        print(f"server: PORT must be a number from 1 to 65535, not {port!r}", file=sys.stderr)
        return 2
    config = Config()
    config.bind = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]
    config.graceful_timeout = GRACE
    config.backlog = 4096
    config.include_server_header = False
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, os.environ.get("SERVER_ID") or socket.gethostname()))
    return 0


async def _serve(config: Config, server_id: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await hypercorn.asyncio.serve(create_app(server_id), config, shutdown_trigger=stop.wait)


sys.exit(main())
