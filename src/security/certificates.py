"""An authority and its certificates, in the form that the engine accepts.

The engine requires RSA of 3,072 bits, SHA-256, an authority marked as such, and identifiers of the
subject's and the authority's key in every certificate. It reads its own certificates from PKCS#12
files with passwords; Redis and nginx read theirs from PEM.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from src.errors import UserError
from src.files import reason
from src.security.key_files import Certified, belong_together, read_certificate, read_key
from src.security.passwords import AUTHORITY, CLIENT, NAMES, SERVER, read_passwords

KEY_BITS = 3072
# A machine whose clock is slightly behind must accept a new certificate.
BACKDATED = timedelta(hours=1)
CA_FILE, CA_KEY, CA_PASSWORD = "ca.crt", "ca.key", "ca.password"
SERVER_FILE, CLIENT_FILE = "server.p12", "client.p12"
REDIS_FILE, REDIS_KEY, PASSWORDS = "redis.crt", "redis.key", "passwords"
GATE_FILE, GATE_KEY = "gate.crt", "gate.key"


def alternative_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """Return the names and addresses that a certificate is for.

    Raises:
        UserError: there are none, or one is neither a host name nor an IP address.
    """
    if not hosts:
        raise UserError("--hosts: expected the addresses and names of the servers, with commas")
    return [_alternative_name(host) for host in hosts]


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", host):
            raise UserError(
                f"--hosts: {host!r} is neither an address nor a host name; expected for example "
                "192.168.1.5,fl.example.org (without ports)"
            ) from None
        return x509.DNSName(host)


def new_authority(name: str, days: int) -> Certified:
    """Make an authority with a self-signed certificate."""
    key = _new_key()
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    subject = _name(name)
    certificate = (
        _builder(subject, subject, key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(own, critical=False)
        .add_extension(_authority_of(own), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Certified(certificate, key)


def new_leaf(authority: Certified, name: str, hosts: Sequence[str] | None, days: int) -> Certified:
    """Make a certificate for a server at `hosts`; with None for a client.

    A client's certificate has no host and only the purpose of a client: nobody can impersonate a
    server with it.

    Raises:
        UserError: it would outlive the authority, or a host is invalid.
    """
    _require_within(authority, days)
    key = _new_key()
    extensions = authority.certificate.extensions
    signer = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH if hosts is None else ExtendedKeyUsageOID.SERVER_AUTH
    builder = (
        _builder(_name(name), authority.certificate.subject, key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=hosts is None)
        .add_extension(own, critical=False)
        .add_extension(_authority_of(signer), critical=False)
    )
    if hosts is not None:
        names = x509.SubjectAlternativeName(alternative_names(hosts))
        builder = builder.add_extension(names, critical=False)
    return Certified(builder.sign(authority.key, hashes.SHA256()), key)


def _require_within(authority: Certified, days: int) -> None:
    """Raise a UserError if a certificate of `days` days would outlive the authority."""
    end = datetime.now(timezone.utc) + timedelta(days=days)
    last = authority.certificate.not_valid_after_utc
    if end > last:
        raise UserError(
            f"--days is {days}, and the authority expires on {last:%Y-%m-%d}, before that; give "
            "fewer, or make a new authority without --ca (--ca_days)"
        )


def load_authority(folder: Path, passwords: dict[str, str]) -> Certified:
    """Load the authority that an earlier call has written to `folder`.

    Raises:
        UserError: a file is missing or broken, or the password does not open the key.
    """
    if AUTHORITY not in passwords:
        raise UserError(f"--ca {folder}: {AUTHORITY} is not set, and {CA_KEY} needs it")
    found = Certified(
        read_certificate("--ca", folder / CA_FILE),
        read_key("--ca", folder / CA_KEY, passwords[AUTHORITY]),
    )
    if not belong_together(found):
        raise UserError(f"--ca {folder}: {CA_KEY} is not the key of {CA_FILE}")
    return found


def passwords_in(folder: Path, file: str) -> dict[str, str]:
    """Return an earlier call's passwords in `folder`, overridden by `file` and the environment."""
    found: dict[str, str] = {}
    for name in (PASSWORDS, CA_PASSWORD):
        if (folder / name).exists():
            found.update(read_passwords(folder / name))
    return {**found, **read_passwords(file)}


def with_missing_passwords(given: dict[str, str]) -> dict[str, str]:
    """Return `given`, plus a new password for every name that it lacks."""
    return {name: given.get(name) or secrets.token_urlsafe(24) for name in NAMES}


def signed_files(
    authority: Certified, hosts: Sequence[str], days: int, passwords: dict[str, str]
) -> dict[str, bytes]:
    """Return file name -> content: new certificates, their authority's, and their passwords.

    Raises:
        UserError: they would outlive the authority.
    """
    server, cache, gate = (
        new_leaf(authority, f"federated {role}", hosts, days)
        for role in ("server", "redis", "gate")
    )
    client = new_leaf(authority, "federated client", None, days)
    return {
        CA_FILE: authority.certificate.public_bytes(Encoding.PEM),
        SERVER_FILE: _pkcs12(server, passwords[SERVER]),
        CLIENT_FILE: _pkcs12(client, passwords[CLIENT]),
        REDIS_FILE: cache.certificate.public_bytes(Encoding.PEM),
        REDIS_KEY: _pem(cache.key, NoEncryption()),
        GATE_FILE: gate.certificate.public_bytes(Encoding.PEM),
        GATE_KEY: _pem(gate.key, NoEncryption()),
        PASSWORDS: _lines(passwords, SERVER, CLIENT),
    }


def silo_files(
    authority: Certified, name: str, days: int, password: str
) -> tuple[dict[str, bytes], x509.Certificate]:
    """Return file name -> content for one silo: a certificate in the silo's name.

    Raises:
        UserError: see `new_leaf`.
    """
    silo = new_leaf(authority, name, None, days)
    files = {
        CA_FILE: authority.certificate.public_bytes(Encoding.PEM),
        CLIENT_FILE: _pkcs12(silo, password),
        PASSWORDS: _lines({CLIENT: password}, CLIENT),
    }
    return files, silo.certificate


def signing_files(authority: Certified, passwords: dict[str, str]) -> dict[str, bytes]:
    """Return file name -> content: the signing key for more certificates, and its password."""
    secret = BestAvailableEncryption(passwords[AUTHORITY].encode())
    return {CA_KEY: _pem(authority.key, secret), CA_PASSWORD: _lines(passwords, AUTHORITY)}


def write_all(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write the files, each with mode 0600.

    Raises:
        UserError: one of them exists already, and nothing is written; or the folder cannot be
            written.
    """
    there = [name for name in contents if (folder / name).exists()]
    if there:
        raise UserError(
            f"--out {folder}: holds {', '.join(there)} already, and nothing is overwritten; give "
            "another folder (--ca keeps the authority)"
        )
    made: list[Path] = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, data in contents.items():
            (folder / name).parent.mkdir(mode=0o700, exist_ok=True)
            _write_private(folder / name, data, made)
    except OSError as error:
        for path in made:
            path.unlink()
        where = error.filename or made[-1]
        raise UserError(f"--out {folder}: {where}: {reason(error)}") from None


def settings_text(folder: Path) -> str:
    """Return the lines of the federation's file that name the files written to `folder`."""
    names = {
        "ssl": {
            "server_cert_path": SERVER_FILE,
            "client_cert_path": CLIENT_FILE,
            "ca_cert_path": CA_FILE,
        },
        "distributed_cache": {"cacert_filename": CA_FILE},
    }
    lines = ["enable_ssl: True"]
    for section, keys in names.items():
        lines.append(f"{section}:")
        lines += [f"  {key}: {folder.absolute() / name}" for key, name in keys.items()]
    return "\n".join(lines) + "\n"


def _write_private(path: Path, data: bytes, made: list[Path]) -> None:
    """Create the file for its owner only, and note it; an existing file is an error."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    made.append(path)
    with os.fdopen(handle, "wb") as file:
        file.write(data)


def _lines(passwords: dict[str, str], *names: str) -> bytes:
    return "".join(f"{name}={passwords[name]}\n" for name in names).encode()


def _pkcs12(leaf: Certified, password: str) -> bytes:
    secret = BestAvailableEncryption(password.encode())
    return pkcs12.serialize_key_and_certificates(None, leaf.key, leaf.certificate, None, secret)


def _pem(key: rsa.RSAPrivateKey, secret: serialization.KeySerializationEncryption) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret)


def _new_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: rsa.RSAPrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + timedelta(days=days)) - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _authority_of(identifier: x509.SubjectKeyIdentifier) -> x509.AuthorityKeyIdentifier:
    make = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier
    return make(identifier)


def _usage(signs: bool) -> x509.KeyUsage:
    """Return the key usage: signing for an authority, else what a TLS handshake needs."""
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=not signs,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
