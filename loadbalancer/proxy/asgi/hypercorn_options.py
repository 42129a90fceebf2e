"""Hypercorn's options, made of ours."""

import logging
import ssl
from collections.abc import Sequence

from hypercorn.config import Config

from loadbalancer.listening import BACKLOG
from loadbalancer.proxy.asgi.websocket import MAX_MESSAGE
from loadbalancer.settings import Settings
from loadbalancer.tls import Certificate


class HypercornOptions(Config):
    """Hypercorn's options.

    Args:
        settings: Ours.
        bind: What it listens on.
        certificate: What clients are served with; None: plain HTTP.
    """

    def __init__(
        self, settings: Settings, bind: Sequence[str] = (), certificate: Certificate | None = None
    ) -> None:
        super().__init__()
        self._certificate = certificate
        self.bind = list(bind)
        self.backlog = BACKLOG
        self.graceful_timeout = settings.drain_timeout
        self.keep_alive_timeout = settings.idle_timeout
        self.h11_max_incomplete_size = settings.max_head
        self.websocket_max_message_size = MAX_MESSAGE
        # The replicas' answers pass as they are; ours bring their own date.
        self.include_server_header = self.include_date_header = False
        self.errorlog = logging.getLogger("hypercorn.error")

    @property
    def ssl_enabled(self) -> bool:
        """Whether there is TLS."""
        return self._certificate is not None

    def create_ssl_context(self) -> ssl.SSLContext | None:
        """Our own context, in which the certificate can be renewed."""
        return None if self._certificate is None else self._certificate.context
