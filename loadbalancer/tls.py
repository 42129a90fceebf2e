"""The certificate that clients are served with, and its renewal without a restart.

The control plane reads the files, and only a certificate and a key that fit each other come into use. They
are kept in memory as PEM text, so that a worker that starts later does not depend on the files.
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
"""The protocols offered by ALPN (RFC 7301), the preferred one first."""


class CertificateError(Exception):
    """The certificate or its key cannot be used; the text says which file, and why."""


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key as PEM text. The key never appears in a log or in `repr`.

    Args:
        cert: The certificate, and the certificates of its issuers after it.
        key: The private key, not encrypted.
        cert_file: The file that the certificate was read from; for messages.
        key_file: The file that the key was read from; for messages.
    """

    cert: bytes = field(repr=False)
    key: bytes = field(repr=False)
    cert_file: str = "the certificate"
    key_file: str = "the key"

    @classmethod
    def read(cls, cert_file: str, key_file: str) -> Self:
        """Read both files.

        Raises:
            CertificateError: One cannot be read.
        """
        return cls(_read(cert_file), _read(key_file), cert_file, key_file)


class Certificate:
    """The certificate and key in use, and the TLS context of the connections that are made with them.

    Args:
        pair: The certificate and its key.

    Raises:
        CertificateError: They cannot be used.
    """

    def __init__(self, pair: KeyPair) -> None:
        # Hypercorn's choice (RFC 9113, section 9.2): TLS 1.2 and later, no compression.
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.options |= ssl.OP_NO_COMPRESSION
        self.context.set_alpn_protocols(PROTOCOLS)
        self.replace(pair)

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """The certificate that the options name, or None if they name none.

        Raises:
            CertificateError: It cannot be used.
        """
        return cls(KeyPair.read(settings.tls_cert, settings.tls_key)) if settings.tls_cert else None

    @property
    def pair(self) -> KeyPair:
        """The pair in use: the last one that was good."""
        return self._pair

    def replace(self, pair: KeyPair) -> None:
        """Use another pair for the connections that come from now on.

        Raises:
            CertificateError: It cannot be used; the current pair stays in use.
        """
        # Into a context of its own first: a pair that does not match must not spoil the one in use.
        for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.context):
            _load(context, pair)
        self._pair = pair

    def reload(self) -> bool:
        """Read both files again. A pair that cannot be used changes nothing, except for a line in the log.

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
        raise CertificateError(f"{pair.cert_file} and {pair.key_file} are no pair to use: {why}") from None
    except OSError as error:
        raise CertificateError(f"cannot hand {pair.key_file} to OpenSSL: {error.strerror}") from None
    except ValueError as error:
        raise CertificateError(f"{pair.key_file}: {error}") from None


@contextmanager
def _as_file(text: bytes) -> Iterator[str]:
    """A path to the text: the `ssl` module reads certificates and keys from files alone.

    The file has no name, is readable by this user alone, and on Linux exists in memory alone.
    """
    with _unnamed_file() as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
        file.seek(0)  # also flushes it
        yield f"/dev/fd/{file.fileno()}"


def _unnamed_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("certificate"), "w+b")
    return tempfile.TemporaryFile()


def _no_password() -> str:
    # OpenSSL would ask for it on the terminal.
    raise ValueError("the key is encrypted: give one that is not")
