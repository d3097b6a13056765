"""Kits, which a coordinator gives to each silo of a job, and the roster of their owners.

A kit is a folder with the silo's own certificate, the authority's, the federation's file, the
roster and three lines that explain how to start. The federation's file is the same in all kits and
on the coordinator's machine: its file names are valid in either folder.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from src.errors import UserError
from src.files import write_whole
from src.job.job_config import PLACEHOLDER, PREFIX_KEY, load_job
from src.model_utils.config import find_config_file, read_yaml_documents
from src.security.certificates import (
    CA_FILE,
    CLIENT_FILE,
    PASSWORDS,
    SERVER_FILE,
    silo_files,
    write_all,
)
from src.security.key_files import Certified
from src.security.roster import Member, load, member_of, require_name, text_of
from src.security.tls import CIPHERS

ROSTER, FEDERATION, README = "silos.yaml", "federation.yaml", "README.md"
# Keys of the federation's file -> file in a kit, or in the coordinator's folder.
_FILES = {
    "ssl.server_cert_path": SERVER_FILE,
    "ssl.client_cert_path": CLIENT_FILE,
    "ssl.ca_cert_path": CA_FILE,
    "distributed_cache.cacert_filename": CA_FILE,
}
_README = """\
Kit of the silo {name} for the job {job}; {files} are secret, keep their mode 0600.
Check: python tools/preflight.py --role=worker --local_worker_num=1 {flags}, with your data's flags.
Start: python run_cross_silo_fasterrcnn_worker.py with the flags of the check, without --role.
"""


def silo_names(listed: str) -> list[str]:
    """Return the names in --silos, separated by commas.

    Raises:
        UserError: one is not a valid silo name, or is listed twice.
    """
    names = [name.strip() for name in listed.split(",")]
    for name in names:
        require_name(name, "--silos")
        if names.count(name) > 1:
            raise UserError(f"--silos: {name} is there twice, expected each silo once")
    return names


def federation_text(path: str) -> str:
    """Return the federation's file of a job with kits: `path` plus encryption and a secret path.

    Raises:
        UserError: see `load_job`.
    """
    file = find_config_file(path, "--yaml_config")
    given = read_yaml_documents(file)[0]
    overrides: dict[str, Any] = {"enable_ssl": True, **_FILES}
    if not _value(given, "ssl", "cipher_list"):
        overrides["ssl.cipher_list"] = ":".join(CIPHERS)
    if _value(given, "client", "http_url_prefix") in (None, "", PLACEHOLDER):
        overrides[PREFIX_KEY] = f"/{secrets.token_urlsafe(24)}/"
    values = load_job(file, overrides).values
    for key, name in _FILES.items():
        section, last = key.split(".")
        values[section][last] = name
    return yaml.safe_dump(values, sort_keys=False)


def write_kits(
    folder: Path,
    names: Sequence[str],
    authority: Certified,
    days: int,
    federation: str,
    others: dict[str, bytes],
) -> list[Member]:
    """Write a kit for each of `names` and the roster that includes them; return all members.

    Args:
        folder: the folder of the kits, the roster and the coordinator's own files.
        federation: text of the federation's file.
        others: further files to write into `folder`.

    Raises:
        UserError: a name is in the roster already, or a file exists already; nothing is written.
    """
    path = folder / ROSTER
    known = list(load(path).members.values()) if path.exists() else []
    for member in known:
        if member.name in names:
            raise UserError(
                f"--silos: {member.name} is in {path} already; for another certificate remove its "
                f"entry there and the folder {folder / member.name} first"
            )
    kits: dict[str, dict[str, bytes]] = {}
    members = list(known)
    for name in names:
        kits[name], certificate = silo_files(authority, name, days, secrets.token_urlsafe(24))
        members.append(member_of(name, certificate))
    roster = text_of(members)
    for name, kit in kits.items():
        kit[FEDERATION], kit[ROSTER] = federation.encode(), roster.encode()
        kit[README] = _readme(name, yaml.safe_load(federation)["fl_name"]).encode()
    contents = {f"{name}/{file}": data for name, kit in kits.items() for file, data in kit.items()}
    write_all(folder, {**others, **contents})
    write_whole(path, roster, private=True)
    return members


def _readme(name: str, job: str) -> str:
    flags = (
        f"--yaml_config={name}/{FEDERATION} --ssl_passwords={name}/{PASSWORDS} "
        f"--roster={name}/{ROSTER} --http_server_address=ADDRESS:PORT"
    )
    files = f"{CLIENT_FILE}, {PASSWORDS} and {FEDERATION}"
    return _README.format(name=name, job=job, files=files, flags=flags)


def _value(values: dict[str, Any], section: str, key: str) -> Any:
    inner = values.get(section)
    return inner.get(key) if isinstance(inner, dict) else None
