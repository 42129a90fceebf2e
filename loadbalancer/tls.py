"""The TLS certificate for client connections, and its renewal without a restart.

The control plane reads the files. It uses a certificate and a key only if they match. It keeps them in memory
as PEM text, so that a worker that starts later does not depend on the files.
"""

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

import structlog

from loadbalancer.settings import Settings

log = structlog.get_logger("loadbalancer")

PROTOCOLS = ["h2", "http/1.1"]
"""The protocols for ALPN (RFC 7301), the preferred one first."""


class CertificateError(Exception):
    """The certificate or its key cannot be used. The text names the file and the reason."""


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key as PEM text. Neither appears in `repr` or in a log.

    Args:
        cert: The certificate, followed by the certificates of its issuers.
        key: The private key, not encrypted.
        cert_file: The name of the certificate's file, for messages.
        key_file: The name of the key's file, for messages.
    """

    cert: bytes = field(repr=False)
    key: bytes = field(repr=False)
    cert_file: str = "the certificate"
    key_file: str = "the key"

    @classmethod
    def read(cls, cert_file: str, key_file: str) -> Self:
        """Read both files.

        Raises:
            CertificateError: A file cannot be read.
        """
        return cls(_read(cert_file), _read(key_file), cert_file, key_file)


class Certificate:
    """The certificate and key in use, and the TLS context for new connections.

    Args:
        pair: The certificate and its key.

    Raises:
        CertificateError: The pair cannot be used.
    """

    def __init__(self, pair: KeyPair) -> None:
        # As Hypercorn does: TLS 1.2 and later, and no compression (RFC 9113, section 9.2).
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.options |= ssl.OP_NO_COMPRESSION
        self.context.set_alpn_protocols(PROTOCOLS)
        self.replace(pair)

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Load the certificate that the options name, or return None if they name none.

        Raises:
            CertificateError: The certificate or its key cannot be used.
        """
        return cls(KeyPair.read(settings.tls_cert, settings.tls_key)) if settings.tls_cert else None

    @property
    def pair(self) -> KeyPair:
        """The pair in use: the last valid one."""
        return self._pair

    def replace(self, pair: KeyPair) -> None:
        """Use another pair for new connections.

        Raises:
            CertificateError: The pair cannot be used. The current pair stays in use.
        """
        # A new context loads the pair first. So a pair that does not match leaves the context in use
        # unchanged.
        for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.context):
            _load(context, pair)
        self._pair = pair

    def reload(self) -> bool:
        """Read both files again. If the pair cannot be used, the current one stays, and the log says why.

        Returns:
            Whether the pair was replaced.
        """
        try:
            self.replace(KeyPair.read(self._pair.cert_file, self._pair.key_file))
        except CertificateError as error:
            log.error("certificate not reloaded", reason=str(error))
            return False
        log.info("certificate reloaded", cert=self._pair.cert_file)
        return True


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise CertificateError(f"cannot read {file}: {error.strerror}") from None


def _load(context: ssl.SSLContext, pair: KeyPair) -> None:
    try:
        with _as_file(pair.cert) as cert, _as_file(pair.key) as key:
            context.load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        why = (error.reason or str(error)).lower().replace("_", " ")
        raise CertificateError(f"cannot use {pair.cert_file} with {pair.key_file}: {why}") from None
    except OSError as error:
        raise CertificateError(f"cannot pass {pair.key_file} to OpenSSL: {error.strerror}") from None
    except ValueError as error:
        raise CertificateError(f"{pair.key_file}: {error}") from None


@contextmanager
def _as_file(text: bytes) -> Iterator[str]:
    """Provide the text as a file, because the `ssl` module loads certificates and keys from files only.

    The file has no name, only this user can read it, and on Linux it exists in memory only.
    """
    with _unnamed_file() as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
        file.seek(0)  # also flushes the file
        yield f"/dev/fd/{file.fileno()}"


def _unnamed_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("certificate"), "w+b")
    return tempfile.TemporaryFile()


def _no_password() -> str:
    # Without this callback, OpenSSL asks for the password on the terminal.
    raise ValueError("the key is encrypted: use an unencrypted one")
