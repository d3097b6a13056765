"""Write the gate: nginx in front of the servers, which admits only members of a roster.

No value in nginx's configuration can end a directive: values are names and digits of a checked
roster, parsed addresses and ports, and paths without quotes and variables.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

import jinja2
from cryptography import x509

from src.errors import UserError
from src.files import reason, write_whole
from src.job.addresses import parse_address
from src.job.job_config import JobConfig, load_job
from src.model_utils.config import PROJECT_DIR
from src.security.certificate_checks import require_authority, require_certificate
from src.security.certificates import CA_FILE, GATE_FILE, GATE_KEY
from src.security.key_files import Certified, read_certificate, read_key
from src.security.roster import Roster
from src.security.tls import PATHS

TEMPLATES = PROJECT_DIR / "deploy" / "gate"
CONFIGURATION, SCRIPT, FEDERATION = "nginx.conf", "gate.js", "federation.yaml"
# nginx ends a quoted string at a quote and substitutes $names.
UNQUOTABLE = set("\"'\\$")
LARGEST_UPLOAD_MB = 2048


@dataclass(frozen=True)
class Server:
    """Describe one server behind the gate.

    Attributes:
        listen: "ip:port" at which silos reach it.
        address: "ip:port" of the server itself.
    """

    listen: str
    address: str


def servers_behind(listen: str, first: str, count: int) -> list[Server]:
    """Return the servers on consecutive ports, each with a port of the gate.

    Args:
        listen: "ip:port" of the first of the gate's ports.
        first: "ip:port" of the first server.

    Raises:
        UserError: an invalid address, servers on another machine, or no room for `count`.
    """
    outer, outer_port = parse_address(listen, "--listen")
    inner, inner_port = parse_address(first, "--http_server_address")
    if not ipaddress.ip_address(inner).is_loopback:
        raise UserError(
            f"--http_server_address {first}: expected servers on 127.0.0.1, where nobody on "
            "another machine reaches them past the gate"
        )
    last = 65536 - max(outer_port, inner_port)
    if not 1 <= count <= last:
        raise UserError(f"--local_server_num is {count}, expected 1 to {last} with these ports")
    if outer == inner and abs(outer_port - inner_port) < count:
        raise UserError(
            f"--listen {listen}: the servers listen there ({first}); give an address that silos "
            "reach, or other ports"
        )
    return [Server(f"{outer}:{outer_port + n}", f"{inner}:{inner_port + n}") for n in range(count)]


def hosts_of(certificate: x509.Certificate, where: str) -> list[str]:
    """Return the names and addresses that the certificate is for, as a request names its host.

    Raises:
        UserError: there is none, or nginx could take one for a pattern.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    hosts = [name.lower() for name in names.get_values_for_type(x509.DNSName)]
    hosts += [str(ip) for ip in names.get_values_for_type(x509.IPAddress) if ip.version == 4]
    if not hosts:
        raise UserError(f"{where}: names no host; make one with tools/make_certificates.py --hosts")
    for host in hosts:
        if not re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)*", host):
            raise UserError(f"{where}: is for {host!r}, expected host names and addresses")
    return hosts


def configuration(
    job: JobConfig,
    roster: Roster,
    certificates: Path,
    servers: list[Server],
    folder: Path,
    largest_mb: int,
) -> str:
    """Return nginx's configuration.

    Args:
        certificates: folder of the authority's and the gate's certificates and of the gate's key.
        folder: where the configuration will be, with its logs and the data it receives.
        largest_mb: size of the largest upload.

    Raises:
        UserError: a certificate, a value or a path is not allowed in it.
    """
    if not 1 <= largest_mb <= LARGEST_UPLOAD_MB:
        raise UserError(f"--max_upload_mb is {largest_mb}, expected 1 to {LARGEST_UPLOAD_MB}")
    authority, own, key = (
        (certificates / name).absolute() for name in (CA_FILE, GATE_FILE, GATE_KEY)
    )
    pair = Certified(read_certificate("--certificates", own), read_key("--certificates", key))
    trusted = require_authority("--certificates", authority)
    require_certificate(f"--certificates {own}", pair, trusted)
    for path in (authority, own, key, folder, roster.path):
        _require_quotable(path)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # noqa: S701 (nginx's configuration; its values are checked above)
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(f"{CONFIGURATION}.j2").render(
        roster=roster.path,
        folder=folder,
        members=list(roster.members.values()),
        hosts=hosts_of(pair.certificate, str(own)),
        prefix=job.url_prefix or "/",
        certificate=own,
        key=key,
        authority=authority,
        servers=servers,
        largest_mb=largest_mb,
    )


def servers_job(path: str) -> JobConfig:
    """Load the job of the servers behind a gate: without encryption, on this machine.

    Raises:
        UserError: as in `load_job`; or Redis is on another machine.
    """
    job = load_job(path, {"enable_ssl": False})
    host, port = job.redis_address
    if not ipaddress.ip_address(host).is_loopback:
        raise UserError(
            f"{job.path}: distributed_cache.address is {host}:{port}, expected Redis on 127.0.0.1: "
            "servers behind a gate talk to it without encryption"
        )
    job.values.pop("ssl", None)
    for key in [key for key in PATHS if key.startswith("distributed_cache.")]:
        job.values["distributed_cache"].pop(key.split(".")[1], None)
    return job


def write_gate(folder: Path, text: str, job: JobConfig) -> None:
    """Write configuration, script and the servers' federation file, readable only by the owner.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        write_whole(folder / SCRIPT, (TEMPLATES / SCRIPT).read_bytes(), private=True)
        write_whole(folder / CONFIGURATION, text, private=True)
        job.write(folder / FEDERATION)
    except OSError as error:
        raise UserError(f"--out {error.filename or folder}: {reason(error)}") from None


def _require_quotable(path: Path) -> None:
    if not str(path).isprintable() or UNQUOTABLE & set(str(path)):
        raise UserError(
            f"{path}: nginx takes no path with a quote, a backslash, a $ or a control character; "
            "choose another folder"
        )
