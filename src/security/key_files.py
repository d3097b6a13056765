"""Files with certificates and keys: read with one-line errors, and presented to a peer."""

from __future__ import annotations

import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    pkcs12,
)

from src.errors import UserError


@dataclass(frozen=True)
class Certified:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: Any


def read_pkcs12(what: str, path: Path, password: str) -> Certified:
    """Read the certificate and key of a PKCS#12 file.

    Args:
        what: the key of the federation's file that names it, for messages.

    Raises:
        UserError: the file is missing or not PKCS#12, the password is wrong, or a part is missing.
    """
    data = read_bytes(what, path)
    try:
        key, certificate, _ = pkcs12.load_key_and_certificates(data, password.encode())
    except ValueError:
        raise UserError(
            f"{what} {path}: this password does not open it, or it is no PKCS#12 file (.p12); "
            "docs/tls.md says where passwords come from"
        ) from None
    if key is None or certificate is None:
        raise UserError(f"{what} {path}: expected a private key and its certificate in it")
    return Certified(certificate, key)


def read_certificate(what: str, path: Path) -> x509.Certificate:
    """Read the first certificate of a PEM file; `what` as in `read_pkcs12`.

    Raises:
        UserError: the file is missing, or has no certificate.
    """
    try:
        return x509.load_pem_x509_certificate(read_bytes(what, path))
    except ValueError:
        raise UserError(f"{what} {path}: expected a certificate in PEM") from None


def read_key(what: str, path: Path, password: str | None = None) -> Any:
    """Read the private key of a PEM file; `what` as in `read_pkcs12`.

    Args:
        password: the key's password; None for a key without one.

    Raises:
        UserError: the file is missing or has no key, or the password is wrong.
    """
    data = read_bytes(what, path)
    try:
        return serialization.load_pem_private_key(data, password.encode() if password else None)
    except (ValueError, TypeError):
        with_password = "with this password" if password else "without a password"
        raise UserError(f"{what} {path}: expected a private key in PEM {with_password}") from None


def read_bytes(what: str, path: Path) -> bytes:
    """Read a file's content; `what` as in `read_pkcs12`.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}") from None


def belong_together(pair: Certified) -> bool:
    """Return whether the key belongs to the certificate."""
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    own = pair.key.public_key().public_bytes(*form)
    return own == pair.certificate.public_key().public_bytes(*form)


def show(context: ssl.SSLContext, pair: Certified, password: str) -> None:
    """Make a context present this certificate to a peer that asks for one.

    Python loads it from a file only. The file exists for a moment, is readable by its owner only,
    and its key is encrypted with `password`.
    """
    secret = BestAvailableEncryption(password.encode())
    with tempfile.NamedTemporaryFile(prefix="silo-") as file:
        file.write(pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
        file.write(pair.certificate.public_bytes(Encoding.PEM))
        file.flush()
        context.load_cert_chain(file.name, password=password)
