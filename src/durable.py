"""Files that outlast a power cut: whole under their name, or not there."""

from __future__ import annotations

import os
from pathlib import Path


def replace_durably(partial: Path, target: Path) -> None:
    """Rename `partial` to `target` once its content is on the disk.

    Without that a power cut can leave the new name with an empty file. When this returns, the name
    is on the disk too.

    Raises:
        OSError: the disk is full or broken; `target` is as it was.
    """
    _sync(partial)
    partial.replace(target)
    _sync(target.parent)


def drop_unfinished_line(path: Path) -> None:
    """Cut off what stands behind the last line's end: a process was killed while it wrote it."""
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def finish_last_line(path: Path) -> None:
    """End the last line, so that the next one begins a line of its own."""
    with path.open("rb+") as file:
        if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read() != b"\n":
            file.write(b"\n")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
