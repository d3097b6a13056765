"""Make certificates for tests, and the federation keys that name them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from src.security.certificates import (
    PASSWORDS,
    new_authority,
    signed_files,
    signing_files,
    with_missing_passwords,
    write_all,
)
from src.security.passwords import read_passwords
from src.security.tls import CIPHERS


def make_certificates(
    folder: Path, days: int = 365, hosts: Sequence[str] = ("127.0.0.1",), name: str = "federation"
) -> Path:
    """Make an authority and all certificates, as tools/make_certificates.py writes them."""
    authority, passwords = new_authority(name, 3650), with_missing_passwords({})
    contents = signing_files(authority, passwords)
    write_all(folder, {**contents, **signed_files(authority, hosts, days, passwords)})
    return folder


def tls_settings(folder: Path) -> dict:
    """Return the keys of a federation's file that name these certificates."""
    return {
        "enable_ssl": True,
        "ssl": {
            "server_cert_path": str(folder / "server.p12"),
            "client_cert_path": str(folder / "client.p12"),
            "ca_cert_path": str(folder / "ca.crt"),
            "crl_path": "",
            "cipher_list": ":".join(CIPHERS),
            "cert_expire_warning_time_in_day": 90,
        },
        "distributed_cache": {"cacert_filename": str(folder / "ca.crt")},
    }


def passwords_of(folder: Path) -> dict[str, str]:
    """Return the environment variables with the passwords that open them."""
    return read_passwords(folder / PASSWORDS)


def write_tls_job(path: Path, folder: Path) -> None:
    """Override keys in the federation file at `path` with `tls_settings`."""
    values = yaml.safe_load(path.read_text())
    settings = tls_settings(folder)
    values["enable_ssl"] = settings["enable_ssl"]
    for section in ("ssl", "distributed_cache"):
        values.setdefault(section, {}).update(settings[section])
    path.write_text(yaml.safe_dump(values))
