"""Check membership: a worker finds its name in the roster, the servers' side finds strangers."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from src.errors import UserError, user_path
from src.job.job_config import JobConfig
from src.job.tls_checks import own_pair
from src.security.passwords import CLIENT, FLAG, read_passwords
from src.security.roster import Roster, common_name, load


def name_silo(job: JobConfig, config: Any) -> str:
    """Give `config` the silo's name, and return a line on how it was found.

    With a roster, the silo's name comes from the certificate that it shows, or from --silo_name
    where connections are not encrypted. Without a roster any name is accepted.

    Args:
        config: roster and silo_name, "" where it was not given.

    Raises:
        UserError: the silo is not in the roster, or has another name there.
    """
    if not config.roster:
        config.silo_name = config.silo_name or socket.gethostname()
        return f"{config.silo_name}; no roster is given"
    # The role that a launcher starts may have another folder.
    config.roster = str(user_path(config.roster).absolute())
    roster = load(config.roster)
    found = _certified_name(job, roster) if job.tls else _given_name(roster, config.silo_name)
    if config.silo_name not in ("", found):
        raise UserError(
            f"--silo_name is {config.silo_name!r}, and this silo's certificate is that of {found} "
            f"in {roster.path}; leave the flag out"
        )
    config.silo_name = found
    return f"{found} is one of {len(roster.members)} in {roster.path}"


def _certified_name(job: JobConfig, roster: Roster) -> str:
    passwords = read_passwords(job.ssl_passwords)
    if CLIENT not in passwords:
        raise UserError(
            f"--roster {roster.path} needs the silo's own certificate: {CLIENT} is not set; give "
            f"{FLAG}=<passwords of this silo's kit>"
        )
    certificate = own_pair(job, CLIENT, passwords).certificate
    where, name = f"ssl.client_cert_path {job['ssl.client_cert_path']}", common_name(certificate)
    member = roster.of_certificate(certificate)
    if member is None:
        known = f"has another certificate for {name}" if name in roster.members else "has no such"
        raise UserError(
            f"{where}: is the certificate of {name!r}, and {roster.path} {known}; ask the "
            "coordinator for a kit and the roster of today"
        )
    if member.name != name:
        raise UserError(
            f"{where}: is the certificate of {name!r}, and {roster.path} has it as {member.name}; "
            "expected one name in both, ask the coordinator"
        )
    return name


def _given_name(roster: Roster, name: str) -> str:
    if name in roster.members:
        return name
    listed = ", ".join(roster.members)
    raise UserError(
        f"--silo_name is {name!r}, and {roster.path} has only {listed}; give this silo's name there"
    )


def stranger_words(path: str, labels: Iterable[str]) -> str:
    """Return a warning about silos that are not in the roster at `path`; "" where all are.

    Args:
        path: file of the roster, "" for none.
        labels: names of silos, such as "hospital_a_0".
    """
    if not path:
        return ""
    try:
        strangers = load(path).strangers(labels)
    except UserError as error:
        return f"WARNING: who is a stranger cannot be told: {error}"
    if not strangers:
        return ""
    return f"WARNING: takes part and is not in the roster {path}: {', '.join(strangers)}"


class StrangerWatch:
    """Report each stranger once, by the roster as it is now, even if it has changed meanwhile.

    Args:
        path: of the roster.
    """

    def __init__(self, path: str):
        self._path = Path(path)
        self._roster = Roster(self._path)
        self._read_at = 0  # modification time of the file that was read
        self._told: set[str] = set()

    def look(self, labels: Iterable[str], iteration: int) -> str:
        """Return a line for the log about strangers in an iteration, or ""."""
        try:
            self._read()
        except (UserError, OSError) as error:
            return self._once([str(error)], "WARNING: who is a stranger cannot be told: ")
        words = f"WARNING: is in iteration {iteration} and not in the roster {self._path}"
        return self._once(self._roster.strangers(labels), f"{words}: ")

    def _read(self) -> None:
        changed = self._path.stat().st_mtime_ns
        if changed != self._read_at:
            self._roster = load(self._path)
            self._read_at = changed

    def _once(self, found: Iterable[str], words: str) -> str:
        new = [one for one in dict.fromkeys(found) if one not in self._told]
        self._told |= set(new)
        return f"{words}{', '.join(new)}" if new else ""
