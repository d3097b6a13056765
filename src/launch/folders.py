"""Log folders of the roles: those of an earlier run are renamed or gone on in, never deleted."""

from __future__ import annotations

from pathlib import Path

from src.files import drop_unfinished_line, finish_last_line


def fresh_folder(path: Path) -> Path:
    """Make `path` a new, empty folder; an earlier one becomes path.1, path.2, ..."""
    if path.exists():
        set_aside(path)
    path.mkdir(parents=True)
    return path


def continued_folder(path: Path) -> Path:
    """Make `path` ready for a process that goes on in it: what it appends begins a new line."""
    path.mkdir(parents=True, exist_ok=True)
    for log in path.glob("*.log"):
        finish_last_line(log)
    for lines in path.glob("*.jsonl"):
        drop_unfinished_line(lines)
    return path


def set_aside(path: Path) -> Path:
    """Rename `path` to the first free path.1, path.2, ... and return the new name."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return path.rename(aside)
