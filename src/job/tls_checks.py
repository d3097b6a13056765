"""Checks for encrypted connections before a role starts: passwords, certificates, names."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509

from src.job.addresses import listens, parse_address
from src.job.checks import WARN, Check, Finding
from src.job.job_config import JobConfig
from src.security.certificate_checks import (
    RENEW,
    days_left,
    listed_names,
    names_address,
    require_authority,
    require_certificate,
    require_usable,
)
from src.security.key_files import Certified, read_certificate, read_key, read_pkcs12
from src.security.passwords import CLIENT, SERVER, read_passwords, require_passwords
from src.security.tls import TlsFiles, client_context, require_handshake

AUTHORITY_KEY = "ssl.ca_cert_path"
KEYS = {SERVER: "ssl.server_cert_path", CLIENT: "ssl.client_cert_path"}
# What each role opens; a worker shows the client certificate if it has the password.
OPENED = {"scheduler": (SERVER,), "server": (SERVER, CLIENT), "worker": ()}
WARNED_DAYS = 90


def tls_checks(job: JobConfig, role: str, address: str = "") -> list[Check]:
    """Return the checks of one role's certificates; none if enable_ssl is False.

    Args:
        role: "scheduler", "server" or "worker".
        address: "ip:port" that it will listen on; its certificate should name it.
    """
    tls = job.tls
    if tls is None:
        return []
    checks = [Check("certificates", lambda: certificates(job, role))]
    if role != "worker":
        checks.append(Check("redis_tls", lambda: _cache_certificates(job, tls)))
        checks.append(
            Check("names", lambda: _names(job, parse_address(address, role)[0]), "certificates")
        )
    return checks


def plain_checks(job: JobConfig, addresses: Iterable[str]) -> list[Check]:
    """Return a check that warns of unencrypted connections to `addresses` off this machine."""
    words = plain_words(job, addresses)
    return [Check("encryption", lambda: Finding(WARN, "encryption", words))] if words else []


def plain_words(job: JobConfig, addresses: Iterable[str]) -> str:
    """Return the warning for servers at `addresses` ("host:port"); "" if there is none."""
    if job.tls is not None:
        return ""
    far = [address.strip() for address in addresses if not _is_loopback(address.strip())]
    if not far:
        return ""
    return (
        f"{', '.join(far)}: plain HTTP to another machine; whoever is on the way reads the weights "
        "and names and can replace the global model; set enable_ssl: True (docs/tls.md), or let a "
        "VPN encrypt it"
    )


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0]
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def certificates(job: JobConfig, role: str) -> str | Finding:
    """Describe the role's certificates; warn if one is about to expire.

    Raises:
        UserError: the engine would refuse one, or its password is missing or wrong.
    """
    passwords = require_passwords(job.ssl_passwords, OPENED[role])
    authority = require_authority(AUTHORITY_KEY, Path(job[AUTHORITY_KEY]))
    found = {AUTHORITY_KEY: authority}
    for name in OPENED[role] or [name for name in (CLIENT,) if name in passwords]:
        pair = own_pair(job, name, passwords)
        require_certificate(f"{KEYS[name]} {job[KEYS[name]]}", pair, authority)
        found[KEYS[name]] = pair.certificate
    return _by_time(job, found)


def own_pair(job: JobConfig, name: str, passwords: dict[str, str]) -> Certified:
    """Return the certificate and key that password `name` opens."""
    return read_pkcs12(KEYS[name], Path(job[KEYS[name]]), passwords[name])


def peers_trusted(tls: TlsFiles, nodes: Iterable[str]) -> str:
    """Check that a server that joins those of `nodes` ("ip:port") would trust them.

    Raises:
        UserError: one of them has another authority, or does not use TLS.
    """
    # The engine's servers check who has signed, not the address.
    context = client_context(tls)
    context.check_hostname = False
    there = [one for one in (parse_address(node, "node") for node in nodes) if listens(*one)]
    for host, port in there:
        require_handshake(host, port, context, "the server that this one is to join")
    return f"{len(there)} server(s) that run have certificates of the same authority"


def _cache_certificates(job: JobConfig, tls: TlsFiles) -> str | Finding:
    """Check the files for Redis, which a server reads itself."""
    found = {}
    if tls.cache_authority:
        key = "distributed_cache.cacert_filename"
        found[key] = require_authority(key, Path(tls.cache_authority))
    if tls.cache_certificate:
        key = "distributed_cache.cert_filename"
        secret = read_key("distributed_cache.private_key_filename", Path(tls.cache_key))
        pair = Certified(read_certificate(key, Path(tls.cache_certificate)), secret)
        require_usable(f"{key} {tls.cache_certificate}", pair)
        found[key] = pair.certificate
    return _by_time(job, found) if found else f"authorities in {tls.cache_folder}"


def _by_time(job: JobConfig, found: dict[str, x509.Certificate]) -> str | Finding:
    """List the certificates with their days left, as a warning if these are few."""
    days = {key: days_left(certificate) for key, certificate in found.items()}
    listed = ", ".join(f"{key} {left} days" for key, left in days.items())
    warned = job.get("ssl.cert_expire_warning_time_in_day") or WARNED_DAYS
    if min(days.values()) >= warned:
        return f"valid still: {listed}"
    return Finding(WARN, "certificates", f"valid still: {listed}; below {warned} renew: {RENEW}")


def _names(job: JobConfig, host: str) -> str | Finding:
    pair = own_pair(job, SERVER, read_passwords(job.ssl_passwords))
    names = listed_names(pair.certificate)
    if names_address(pair.certificate, host):
        return f"the server's certificate is for {names}"
    return Finding(
        WARN,
        "names",
        f"{KEYS[SERVER]} is for {names}, not for {host}: silos and tools that connect to {host} "
        "will refuse it; make one with --hosts for every address that they use",
    )
