"""Log folders of the roles: those of an earlier run are renamed, never deleted."""

from __future__ import annotations

from pathlib import Path


def fresh_folder(path: Path) -> Path:
    """Make `path` a new, empty folder; an earlier one becomes path.1, path.2, ..."""
    if path.exists():
        set_aside(path)
    path.mkdir(parents=True)
    return path


def set_aside(path: Path) -> Path:
    """Rename `path` to the first free path.1, path.2, ... and return the new name."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return path.rename(aside)
