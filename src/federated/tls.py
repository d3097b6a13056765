"""A role's side of encrypted connections: opens its certificates and passes them on."""

from __future__ import annotations

import ssl
from typing import Any

from src.job.checks import require
from src.job.job_config import JobConfig
from src.job.tls_checks import own_pair, tls_checks
from src.security.key_files import show
from src.security.passwords import CLIENT, SERVER, read_passwords
from src.security.tls import TlsFiles, client_context


def engine_tls(job: JobConfig, role: str, address: str) -> Any:
    """Return the engine's SSLConfig for a scheduler or server; None if enable_ssl is False.

    Args:
        role: "scheduler" or "server".
        address: "ip:port" that it will listen on.

    Raises:
        UserError: a certificate or password is missing or would be refused.
    """
    if job.tls is None:
        return None
    require(tls_checks(job, role, address))
    passwords = read_passwords(job.ssl_passwords)
    # Imported late: the import takes seconds, and a wrong file is reported before it.
    from mindspore_federated import SSLConfig

    # A scheduler connects to nobody and needs no client password, but the class requires one.
    return SSLConfig(passwords[SERVER], passwords.get(CLIENT) or passwords[SERVER])


def silo_tls(job: JobConfig) -> ssl.SSLContext | None:
    """Return a worker's TLS context: it verifies servers, and shows its certificate if asked.

    The result is None if enable_ssl is False.

    Raises:
        UserError: a certificate or password is missing or unusable.
    """
    if job.tls is None:
        return None
    require(tls_checks(job, "worker"))
    return silo_context(job, job.tls)


def silo_context(job: JobConfig, tls: TlsFiles) -> ssl.SSLContext:
    """Return the TLS context of a job whose certificates `tls` are known to be in order."""
    context = client_context(tls)
    passwords = read_passwords(job.ssl_passwords)
    if CLIENT in passwords:
        show(context, own_pair(job, CLIENT, passwords), passwords[CLIENT])
    return context
