"""Checks of certificates before anything starts, with one-line errors for the engine's rules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from src.errors import UserError
from src.security.key_files import Certified, belong_together, read_certificate

RSA_BITS, CURVE_BITS = 3072, 256
DAY_S = 86400.0
Kind = TypeVar("Kind", bound=x509.ExtensionType)
RENEW = "tools/make_certificates.py --ca makes new ones of the same authority"


def require_authority(what: str, path: Path) -> x509.Certificate:
    """Return the authority's certificate, if the engine would accept it as one.

    Args:
        what: the key of the federation's file that names it, for messages.

    Raises:
        UserError: it cannot be read, is not an authority's, or is not valid now.
    """
    certificate = read_certificate(what, path)
    where = f"{what} {path}"
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        raise UserError(f"{where}: is no authority's certificate (basic constraint CA:TRUE)")
    _require_identifier(where, certificate, x509.SubjectKeyIdentifier)
    _require_valid(where, certificate)
    return certificate


def require_certificate(where: str, pair: Certified, authority: x509.Certificate) -> None:
    """Check the engine's requirements for its own certificate and key.

    Args:
        where: the key of the federation's file and the file, for messages.

    Raises:
        UserError: it is not valid now, is weak, has another authority, or the key does not match.
    """
    certificate = pair.certificate
    _require_signed(where, certificate, authority)
    require_usable(where, pair)
    _require_strong(where, certificate)
    identifier = _require_identifier(where, certificate, x509.AuthorityKeyIdentifier)
    _require_identifier(where, certificate, x509.SubjectKeyIdentifier)
    of_authority = _extension(authority, x509.SubjectKeyIdentifier)
    if of_authority is not None and identifier.key_identifier != of_authority.digest:
        raise UserError(f"{where}: names another key of the authority than ssl.ca_cert_path has")


def require_usable(where: str, pair: Certified) -> None:
    """Check that key and certificate match and it is valid now; `where`: `require_certificate`.

    Raises:
        UserError: either is not the case.
    """
    if not belong_together(pair):
        raise UserError(f"{where}: the private key is not the certificate's")
    _require_valid(where, pair.certificate)


def days_left(certificate: x509.Certificate) -> int:
    """Return the whole days for which it is still valid."""
    left = certificate.not_valid_after_utc - datetime.now(timezone.utc)
    return math.floor(left.total_seconds() / DAY_S)


def names_address(certificate: x509.Certificate, host: str) -> bool:
    """Return whether its alternative names include this IP address."""
    names = _extension(certificate, x509.SubjectAlternativeName)
    return names is not None and ip_address(host) in names.get_values_for_type(x509.IPAddress)


def listed_names(certificate: x509.Certificate) -> str:
    """Return its alternative addresses and names, separated by commas."""
    names: Iterable = _extension(certificate, x509.SubjectAlternativeName) or ()
    return ", ".join(str(name.value) for name in names) or "none"


def _extension(certificate: x509.Certificate, kind: type[Kind]) -> Kind | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _require_identifier(where: str, certificate: x509.Certificate, kind: type[Kind]) -> Kind:
    value = _extension(certificate, kind)
    if value is None:
        raise UserError(
            f"{where}: has no {kind.oid._name}, without which the engine refuses it; make it again "
            "with that extension, or with tools/make_certificates.py"
        )
    return value


def _require_valid(where: str, certificate: x509.Certificate) -> None:
    now = datetime.now(timezone.utc)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        raise UserError(f"{where}: has expired on {end:%Y-%m-%d %H:%M} UTC; {RENEW}")
    if now < begin:
        raise UserError(
            f"{where}: is valid from {begin:%Y-%m-%d %H:%M} UTC on, and it is "
            f"{now:%Y-%m-%d %H:%M} here; set this machine's clock, or wait"
        )


def _require_signed(where: str, certificate: x509.Certificate, authority: x509.Certificate) -> None:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise UserError(
            f"{where}: was not signed by the authority of ssl.ca_cert_path "
            f"({_common_name(authority)}) but by {_common_name(certificate, issuer=True)}"
        ) from None


def _common_name(certificate: x509.Certificate, issuer: bool = False) -> str:
    name = certificate.issuer if issuer else certificate.subject
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return f"{found[0].value!r}" if found else "one without a common name"


def _require_strong(where: str, certificate: x509.Certificate) -> None:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= RSA_BITS:
        return
    if isinstance(key, ec.EllipticCurvePublicKey) and key.key_size >= CURVE_BITS:
        return
    raise UserError(
        f"{where}: its key is too weak for the engine, which takes RSA from {RSA_BITS} bits on and "
        f"elliptic curves from {CURVE_BITS}"
    )
