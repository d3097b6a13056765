"""Encrypted connections: the files that a job names for them, and the contexts made from them."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from src.errors import UserError, nearest

# The engine's roles take these names and no others.
CIPHERS = (
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-PSK-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-CCM",
    "ECDHE-ECDSA-AES256-CCM",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
)
# Keys of the federation's file that name files or folders, and whether every job needs them.
PATHS = {
    "ssl.server_cert_path": True,
    "ssl.client_cert_path": True,
    "ssl.ca_cert_path": True,
    "distributed_cache.cacert_filename": False,
    "distributed_cache.capath": False,
    "distributed_cache.cert_filename": False,
    "distributed_cache.private_key_filename": False,
}
_CACHE_KEYS = ("cacert_filename", "capath", "cert_filename", "private_key_filename")
PROBE_S = 2.0


@dataclass(frozen=True)
class TlsFiles:
    """The files that every command of a job needs to connect; only the key's content is secret.

    Attributes:
        authority: PEM file of the authority of the servers' and the scheduler's certificates.
        ciphers: cipher suites of TLS 1.2, separated by colons.
        cache_authority, cache_folder: PEM file, or folder of such files, of Redis's authority.
        cache_certificate, cache_key: PEM files to present to Redis, or "".
    """

    authority: str
    ciphers: str
    cache_authority: str = ""
    cache_folder: str = ""
    cache_certificate: str = ""
    cache_key: str = ""

    def redis_options(self) -> dict[str, Any]:
        """Return the TLS arguments of redis.Redis."""
        return {
            "ssl": True,
            "ssl_ca_certs": self.cache_authority or None,
            "ssl_ca_path": self.cache_folder or None,
            "ssl_certfile": self.cache_certificate or None,
            "ssl_keyfile": self.cache_key or None,
            "ssl_check_hostname": True,
        }


def as_record(files: TlsFiles | None) -> dict[str, str]:
    """Return plain values for a file that another process reads; {} for no encryption."""
    return asdict(files) if files else {}


def from_record(values: Mapping[str, str]) -> TlsFiles | None:
    """Return the files that `as_record` was given."""
    return TlsFiles(**values) if values else None


def tls_files(path: Path, flat: Mapping[str, Any]) -> TlsFiles:
    """Return the files that a federation's file names.

    Args:
        path: the file, for messages.
        flat: its values by dotted key, with file names from `absolute_paths`.

    Raises:
        UserError: a key is missing, or the engine does not accept the cipher list.
    """
    missing = [key for key, needed in PATHS.items() if needed and not flat.get(key)]
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing, and enable_ssl is True; see docs/tls.md")
    cache = {key: flat.get(f"distributed_cache.{key}") or "" for key in _CACHE_KEYS}
    if not (cache["cacert_filename"] or cache["capath"]):
        raise UserError(
            f"{path}: distributed_cache.cacert_filename is missing, the PEM file of who signed "
            "Redis' certificate: with enable_ssl the servers talk TLS to Redis too, see docs/tls.md"
        )
    if flat.get("ssl.crl_path"):
        raise UserError(
            f"{path}: ssl.crl_path is {flat['ssl.crl_path']!r}, expected '': the engine lets in "
            "certificates that the list revokes; docs/tls.md says what to do instead"
        )
    if bool(cache["cert_filename"]) != bool(cache["private_key_filename"]):
        raise UserError(
            f"{path}: distributed_cache.cert_filename and distributed_cache.private_key_filename "
            "go together, and one is missing"
        )
    return TlsFiles(
        flat["ssl.ca_cert_path"],
        _ciphers(path, flat.get("ssl.cipher_list")),
        cache["cacert_filename"],
        cache["capath"],
        cache["cert_filename"],
        cache["private_key_filename"],
    )


def _ciphers(path: Path, listed: str | None) -> str:
    names = (listed or "").split(":")
    for name in names:
        if name not in CIPHERS:
            raise UserError(
                f"{path}: ssl.cipher_list has {name!r}{nearest(name, CIPHERS)}, expected names of "
                "default_yaml_config.yaml's list, with colons"
            )
    return ":".join(names)


def absolute_paths(path: Path, flat: Mapping[str, Any]) -> dict[str, str]:
    """Return dotted key -> absolute file name; a relative one starts at the folder of `path`."""
    folder = path.absolute().parent
    return {key: str(folder / flat[key]) for key in PATHS if flat.get(key)}


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Make a context that verifies the authority and the address of a server's certificate.

    Raises:
        UserError: the authority's file is missing or unusable.
    """
    try:
        context = ssl.create_default_context(cafile=files.authority)
    except OSError as error:
        raise UserError(
            f"ssl.ca_cert_path {files.authority}: {error.strerror or explain(error)}; expected a "
            "certificate in PEM"
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(files.ciphers)
    return context


def explain(error: BaseException) -> str:
    """Explain a connection error to the user, by the TLS error within it if there is one."""
    within = error.__context__
    if within is not None and (isinstance(within, ssl.SSLError) or "handshake" in str(within)):
        error = within
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}{_hint(error.verify_message)}"
    text = str(error)
    if "WRONG_VERSION_NUMBER" in text or "UNKNOWN_PROTOCOL" in text:
        return "it does not speak TLS, and this side does (enable_ssl: True)"
    if "handshake operation timed out" in text:
        return "no TLS handshake in time; does it speak TLS (enable_ssl: True on this side)?"
    if isinstance(error, ssl.SSLError) and "ALERT" in text:
        alert = (error.reason or text).replace("_", " ").lower()
        return f"it ends the TLS handshake ({alert}): does it want a certificate of this side?"
    return text


def _hint(message: str) -> str:
    if "issuer" in message or "self signed" in message or "self-signed" in message:
        trusted = "ssl.ca_cert_path, for Redis distributed_cache.cacert_filename"
        return f" (signed by another authority than this side trusts: {trusted})"
    if "mismatch" in message:
        return " (connect to an address that is in it, or make one for this address)"
    if "expired" in message or "not yet valid" in message:
        return " (renew it, or set this machine's clock)"
    return ""


def breaks_off(error: BaseException) -> bool:
    """Return whether a plain request to a TLS server ends so; other requests may too."""
    refused = isinstance(error, ConnectionRefusedError)
    return isinstance(error, ConnectionError) and not refused


def speaks_tls(host: str, port: int) -> bool:
    """Return whether a TLS handshake with the address succeeds, whatever its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.suppress(OSError):
        _handshake(host, port, context)
        return True
    return False


def require_handshake(host: str, port: int, context: ssl.SSLContext, what: str) -> None:
    """Open an encrypted connection and close it again.

    Args:
        what: the peer, for the message.

    Raises:
        UserError: it fails; the message has the reason.
    """
    try:
        _handshake(host, port, context)
    except OSError as error:
        raise UserError(f"{what} at {host}:{port}: {explain(error)}; see docs/tls.md") from None


def _handshake(host: str, port: int, context: ssl.SSLContext) -> None:
    with socket.create_connection((host, port), timeout=PROBE_S) as plain:
        context.wrap_socket(plain, server_hostname=host).close()
