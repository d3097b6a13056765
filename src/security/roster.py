"""The roster: the members of a job, and the certificate that identifies each.

It is a YAML file, the same on every machine of a job, and not secret. A member's name is the silo
name of its workers and the common name of its certificate.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from src.errors import UserError, nearest
from src.model_utils.config import read_yaml_documents

# A common name has at most 64 characters, and the name is also a folder's.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
NAME_WORDS = "up to 64 letters, digits and _ - . with a letter or digit first"
MEMBERS = "silos"
_DIGEST = "64 lower-case hexadecimal digits"
_SERIAL = "upper-case hexadecimal digits, two of each byte"
# key: (pattern, meaning); `images` is a number.
_TEXTS = {
    "certificate": (r"[0-9a-f]{64}", f"the SHA-256 of the certificate in DER, {_DIGEST}"),
    "serial": (r"([0-9A-F]{2}){1,20}", f"the certificate's serial number, {_SERIAL}"),
    "public_key": (r"[0-9a-f]{64}", f"a public key, {_DIGEST}"),
}
KEYS = (*_TEXTS, "images")
_NEEDED = ("certificate", "serial")
_NUMBER = re.compile(r"_\d+$")


@dataclass(frozen=True)
class Member:
    """One organisation in a job.

    Attributes:
        certificate: SHA-256 of its certificate in DER, lower-case hexadecimal.
        serial: the certificate's serial number as nginx' $ssl_client_serial prints it.
        public_key: 32 bytes in lower-case hexadecimal, or "" for none.
        images: how many it may declare; None for any number.
    """

    name: str
    certificate: str
    serial: str
    public_key: str = ""
    images: int | None = None


@dataclass(frozen=True)
class Roster:
    """The members of a job by their names.

    Attributes:
        path: the file, for messages.
    """

    path: Path
    members: Mapping[str, Member] = field(default_factory=dict)

    def of_certificate(self, certificate: x509.Certificate) -> Member | None:
        """Return the member with this certificate; None for an unknown one."""
        digest = fingerprint(certificate)
        return next((m for m in self.members.values() if m.certificate == digest), None)

    def strangers(self, labels: Iterable[str]) -> list[str]:
        """Return the silos (such as "hospital_a_0") that belong to no member."""
        return [label for label in labels if member_name(label) not in self.members]


def member_name(label: str) -> str:
    """Return the member that a silo belongs to: its name without the worker's number."""
    return _NUMBER.sub("", label)


def member_of(name: str, certificate: x509.Certificate) -> Member:
    """Make the member of a certificate.

    Raises:
        UserError: the name is not valid for a member.
    """
    require_name(name, "a silo's name")
    return Member(name, fingerprint(certificate), serial_number(certificate))


def common_name(certificate: x509.Certificate) -> str:
    """Return a certificate's common name, for a silo the member's name; "" if it has none."""
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of the certificate in DER."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def serial_number(certificate: x509.Certificate) -> str:
    """Return the serial number as nginx and openssl print it: in whole bytes."""
    digits = f"{certificate.serial_number:X}"
    return digits.zfill(len(digits) + len(digits) % 2)


def require_name(name: object, where: str) -> None:
    """Raise a UserError if this is not a valid name for a member."""
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise UserError(f"{where}: {_shown(name)} is no name of a silo, expected {NAME_WORDS}")


def load(path: str | Path) -> Roster:
    """Read and check a roster.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown or missing, a value has the
            wrong form, or two members share a name or certificate.
    """
    file = Path(path)
    documents = read_yaml_documents(file)
    _refuse_repeated_keys(file)
    values = documents[0]
    for key in values:
        if key != MEMBERS:
            raise UserError(f"{file}: unknown key {_shown(key)}, expected only {MEMBERS}:")
    entries = values.get(MEMBERS)
    if len(documents) > 1 or not isinstance(entries, dict) or not entries:
        raise UserError(f"{file}: expected one document, {MEMBERS}: and below it a line per silo")
    members = {name: _member(file, name, entry) for name, entry in entries.items()}
    for key in _NEEDED:
        _refuse_shared(file, key, members)
    return Roster(file, members)


def text_of(members: Iterable[Member]) -> str:
    """Return a roster of these members as the file's text."""
    entries = {}
    for member in sorted(members, key=lambda one: one.name):
        values = {key: value for key, value in asdict(member).items() if value not in ("", None)}
        entries[values.pop("name")] = values
    return yaml.safe_dump({MEMBERS: entries}, sort_keys=False)


def _member(file: Path, name: object, entry: object) -> Member:
    require_name(name, f"{file}: {MEMBERS}")
    where = f"{file}: {MEMBERS}.{name}"
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected the keys {', '.join(_NEEDED)} below it")
    for key in entry:
        if key not in KEYS:
            hint = nearest(key, KEYS) if isinstance(key, str) else ""
            known = ", ".join(KEYS)
            raise UserError(f"{where}: unknown key {_shown(key)}{hint}, expected {known}")
    for key in _NEEDED:
        if key not in entry:
            raise UserError(f"{where}: {key} is missing, {_TEXTS[key][1]}")
    for key, value in entry.items():
        _check(f"{where}.{key}", key, value)
    return Member(str(name), **entry)


def _check(where: str, key: str, value: object) -> None:
    if key == "images":
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
            raise UserError(f"{where} is {_shown(value)}, expected a number of images, 1 or more")
        return
    pattern, words = _TEXTS[key]
    if isinstance(value, str) and re.fullmatch(pattern, value):
        return
    quotes = "" if isinstance(value, str) else "; in quotes, since YAML reads digits as a number"
    raise UserError(f"{where} is {_shown(value)}, expected {words}{quotes}")


def _refuse_shared(file: Path, key: str, members: Mapping[str, Member]) -> None:
    """Refuse two members that a reverse proxy could not distinguish."""
    counts = Counter(getattr(member, key) for member in members.values())
    for value, count in counts.items():
        if count > 1:
            names = [name for name, one in members.items() if getattr(one, key) == value]
            raise UserError(
                f"{file}: {' and '.join(names)} have the same {key} {value}, expected a "
                "certificate of its own for each silo"
            )


def _refuse_repeated_keys(file: Path) -> None:
    """Refuse repeated keys, of which YAML's reader silently uses the last."""
    nodes: list[yaml.Node] = [yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader)]
    looked_at = set()  # an alias refers to the same node again
    while nodes:
        node = nodes.pop()
        if not isinstance(node, yaml.MappingNode) or id(node) in looked_at:
            continue
        looked_at.add(id(node))
        seen: dict[str, int] = {}
        for key, value in node.value:
            nodes.append(value)
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in seen:
                raise UserError(
                    f"{file}, line {line}: {_shown(key.value)} is there already, in line "
                    f"{seen[key.value]}; expected each name and key once"
                )
            seen[key.value] = line


def _shown(value: object) -> str:
    """Return a value for a message, shortened if long; for lists and the like only their type."""
    text = type(value).__name__ if isinstance(value, (dict, list, set, tuple)) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
