"""The worker process: a fast lane that the control plane directs.

`handle` starts the process, and passes it a channel and the listening sockets of all workers. The process
ignores the signals that are meant for the whole load balancer, because the control plane sends a command to
end.

If the control plane is killed, the worker serves as long as its replicas run. Containers outlive the control
plane, so the worker serves until a successor takes over. Replica processes end with the control plane, and so
does the worker.
"""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence

import structlog
import uvloop

from loadbalancer.proxy.accounting import Accounting
from loadbalancer.proxy.asgi.http2 import Http2, open_http2
from loadbalancer.proxy.asgi.remote_admin import open_remote_admin
from loadbalancer.proxy.fast.lane import FastLane
from loadbalancer.proxy.router import Router
from loadbalancer.settings import Settings
from loadbalancer.telemetry.logs import configure as configure_logs
from loadbalancer.telemetry.metrics import Metrics
from loadbalancer.tls import Certificate, CertificateError
from loadbalancer.workers import messages
from loadbalancer.workers.follower import Follower
from loadbalancer.workers.messages import MAX_LINE, PULSE, Message
from loadbalancer.workers.succession import wait_for_successor

log = structlog.get_logger("loadbalancer.workers")


def main() -> int:
    """Serve until the control plane sends the command to end.

    Returns:
        The exit status: 0, or 1 after an unexpected error, which is in the log with its trace.
    """
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    configure_logs("auto", "info")  # until the options arrive
    channel, *listeners = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(channel, listeners))
    except Exception:
        log.exception("worker failed")
        return 1
    return 0


async def _serve(channel: socket.socket, listeners: Sequence[socket.socket]) -> None:
    reader, writer = await asyncio.open_connection(sock=channel, limit=MAX_LINE)
    try:
        first = await reader.readline()
        if not first:
            return  # the control plane has ended
        begin = messages.Begin.model_validate_json(first)
        settings = _with_own_share(Settings.model_validate(begin.settings))
        configure_logs(settings.log_format, settings.log_level)

        def send(message: Message) -> None:
            if not writer.is_closing():
                writer.write(messages.line(message))

        metrics = Metrics()
        follower = Follower(settings, metrics, send)
        accounting = Accounting(metrics, access_log=settings.access_log)
        certificate = Certificate(begin.certificate.pair()) if begin.certificate else None
        router = Router.of(follower.publication, settings)
        async with (
            _http2(router, settings, accounting, begin.admin, certificate) as http2,
            FastLane(router, settings, accounting, begin.admin, http2) as lane,
            _reports(follower),
        ):
            acceptor = _Acceptor(lane, listeners, certificate)
            await _obey(reader, acceptor, follower, send)
            if begin.succession and not lane.closing:
                acceptor.close_listeners()
                log.warning("the control plane has ended: this worker serves until a successor takes over")
                if not await wait_for_successor(begin.succession):
                    log.error("no successor of the control plane has taken over")
                await acceptor.drain(settings.drain_timeout)
    finally:
        writer.close()


class _Acceptor:
    """Accepts connections for the lane from some of the listening sockets.

    Args:
        lane: The lane that serves the connections.
        listeners: The sockets of all workers.
        certificate: The certificate for client connections; None: plain HTTP.
    """

    def __init__(
        self, lane: FastLane, listeners: Sequence[socket.socket], certificate: Certificate | None
    ) -> None:
        self.lane = lane
        self._listeners = list(listeners)
        self._certificate = certificate
        self._accepting: dict[int, socket.socket] = {}

    async def accept(self, indices: Sequence[int]) -> None:
        """Accept from these sockets and no others, by their indices."""
        for index in self._accepting.keys() - set(indices):
            self.lane.stop_listening(self._accepting.pop(index))
        context = self._certificate.context if self._certificate else None
        for index in indices:
            if index in self._accepting:
                continue
            try:
                # The lane closes its sockets. A duplicate keeps the socket for a later command.
                listener = self._listeners[index].dup()
                await self.lane.listen(listener, context)
            except OSError as error:
                if not self._accepting:
                    raise  # the worker cannot serve at all
                log.error("cannot accept for another worker", reason=str(error))
            else:
                self._accepting[index] = listener

    def renew(self, certificate: messages.Pem) -> None:
        """Use another certificate for new connections."""
        if self._certificate is not None:
            try:
                self._certificate.replace(certificate.pair())
            except CertificateError as error:  # The pair is valid, but file descriptors may be exhausted.
                log.error("certificate not replaced", reason=str(error))

    def close_listeners(self) -> None:
        """Close all sockets except those in use. The kernel gives connections to every open socket."""
        while self._listeners:
            self._listeners.pop().close()

    async def drain(self, patience: float) -> None:
        """Accept no more connections, and return when the requests in flight have ended.

        Args:
            patience: Maximum seconds for the requests in flight.
        """
        self.close_listeners()
        await self.lane.drain(patience)


async def _obey(
    reader: asyncio.StreamReader, acceptor: _Acceptor, follower: Follower, send: messages.Send
) -> None:
    """Execute the commands of the control plane until it sends `Drain` or ends."""
    ready = False
    with contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            command = messages.commands.validate_json(line)
            if isinstance(command, messages.Rotation):
                follower.follow(command)
            elif isinstance(command, messages.Accept):
                await acceptor.accept(command.listeners)
                if not ready:
                    ready = True
                    send(messages.Ready())
            elif isinstance(command, messages.Renew):
                acceptor.renew(command.certificate)
            elif isinstance(command, messages.Drain):
                await acceptor.drain(command.patience)
                return


@contextlib.asynccontextmanager
async def _reports(follower: Follower) -> AsyncIterator[None]:
    """Send reports for the duration of a `with` block, and a last one at its end."""
    loop = asyncio.get_running_loop()

    async def report() -> None:
        while True:
            await asyncio.sleep(PULSE)
            follower.report(loop.time())

    async with asyncio.TaskGroup() as tasks:
        reporting = tasks.create_task(report(), name="reports")
        try:
            yield
        finally:
            reporting.cancel()
    follower.report(loop.time())


@contextlib.asynccontextmanager
async def _http2(
    router: Router,
    settings: Settings,
    accounting: Accounting,
    admin: str,
    certificate: Certificate | None,
) -> AsyncIterator[Http2 | None]:
    if certificate is None:
        yield None
        return
    async with (
        open_remote_admin(admin, settings) as remote,
        open_http2(router, settings, accounting, remote) as http2,
    ):
        yield http2


def _with_own_share(settings: Settings) -> Settings:
    """Divide the limits for all workers together by the number of workers, rounded up."""
    names = ("queue_size", "max_connections")
    return settings.model_copy(
        update={name: -(-getattr(settings, name) // settings.workers) for name in names}
    )


if __name__ == "__main__":
    sys.exit(main())
