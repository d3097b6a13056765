"""Passwords of certificates: from the environment or a private file, never on a command line."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from src.errors import UserError, nearest, user_path

SERVER, CLIENT, AUTHORITY = NAMES = (
    "FL_SERVER_PASSWORD",
    "FL_CLIENT_PASSWORD",
    "FL_CA_PASSWORD",
)
FLAG = "--ssl_passwords"
# It goes through the engine's C strings, and in a file to the end of its line.
LONGEST = 255


def read_passwords(file: str | Path | None) -> dict[str, str]:
    """Return name -> password: from the environment first, then from `file`.

    Args:
        file: lines NAME=password, readable by its owner only; None or "" for the environment only.

    Raises:
        UserError: the file is missing or readable by others, a name is unknown, a password
            unusable.
    """
    found = _from_file(user_path(file)) if file else {}
    found.update({name: os.environ[name] for name in NAMES if os.environ.get(name)})
    for name, password in found.items():
        if not (password.isascii() and password.isprintable() and len(password) <= LONGEST):
            raise UserError(
                f"{name}: expected up to {LONGEST} printable ASCII characters (the value itself is "
                "shown nowhere)"
            )
    return found


def require_passwords(file: str | Path | None, names: Iterable[str]) -> dict[str, str]:
    """Return the passwords of `read_passwords`, and check that all of `names` are present.

    Raises:
        UserError: one is missing; otherwise see `read_passwords`.
    """
    found = read_passwords(file)
    missing = [name for name in names if name not in found]
    if missing:
        where = f"{file} and the environment have" if file else "the environment has"
        raise UserError(
            f"enable_ssl is True, and {where} no {', '.join(missing)}: export it, or give a file "
            f"of lines NAME=password and mode 0600 with {FLAG}"
        )
    return found


def _from_file(path: Path) -> dict[str, str]:
    try:
        mode = path.stat().st_mode
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise UserError(f"{FLAG} {path}: cannot be read: {reason}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UserError(
            f"{FLAG} {path}: has mode {stat.S_IMODE(mode):04o}, expected 0600, for its owner "
            f"alone: chmod 600 {path}"
        )
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, equals, password = line.partition("=")
        if name not in NAMES or not equals or not password:
            # Not the line itself: it may hold a password.
            hint = nearest(name, NAMES) if equals else ""
            raise UserError(
                f"{FLAG} {path}: line {number} is not {' or '.join(NAMES)}, = and a password{hint}"
            )
        found[name] = password
    return found
