"""The certificate that clients are served with, and its renewal without a restart."""

import ssl
from pathlib import Path
from typing import Self

import structlog

from loadbalancer.settings import Settings

log = structlog.get_logger("loadbalancer")

PROTOCOLS = ["h2", "http/1.1"]
"""What is offered by ALPN (RFC 7301), the preferred one first."""


class CertificateError(Exception):
    """The certificate or its key cannot be used; the text says which file, and why."""


class Certificate:
    """A certificate and its key, and the context of the connections that are made with them.

    Args:
        cert: PEM file with the certificate, and those that vouch for it after it.
        key: PEM file with its private key.

    Raises:
        CertificateError: They cannot be used.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert = cert
        self._key = key
        # Hypercorn's choice (RFC 9113, section 9.2): TLS 1.2 and later, no compression.
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.options |= ssl.OP_NO_COMPRESSION
        self.context.set_alpn_protocols(PROTOCOLS)
        self._load()

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """The certificate that the options name, or None if they name none."""
        return cls(Path(settings.tls_cert), Path(settings.tls_key)) if settings.tls_cert else None

    def reload(self) -> None:
        """Read both files again, for the connections that come from now on; keep what was if they are bad."""
        try:
            self._load()
        except CertificateError as error:
            log.error("certificate not reloaded", reason=str(error))
        else:
            log.info("certificate reloaded", cert=str(self._cert))

    def _load(self) -> None:
        # Into a context of its own first: a pair that does not match must not spoil the one in use.
        for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.context):
            try:
                context.load_cert_chain(self._cert, self._key, password=_no_password)
            except ssl.SSLError as error:
                why = (error.reason or str(error)).lower().replace("_", " ")
                raise CertificateError(f"{self._cert} and {self._key} are no pair to use: {why}") from None
            except OSError as error:
                missing = self._cert if not _readable(self._cert) else self._key
                raise CertificateError(f"cannot read {missing}: {error.strerror}") from None
            except ValueError as error:
                raise CertificateError(f"{self._key}: {error}") from None


def _readable(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False


def _no_password() -> str:
    # OpenSSL would ask for it on the terminal.
    raise ValueError("the key is encrypted: give one that is not")
