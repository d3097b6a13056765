"""Provide a disk of a few megabytes for tests, which can be filled and made read-only."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

BALLAST = "ballast"


class SmallDisk:
    """Use a tmpfs. Modes do not stop root, so the mount is read-only, not the folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def fill(self, leave: int = 0) -> None:
        """Leave no free byte, or about `leave`."""
        # Not buffered: a short write shows that the disk is full.
        with (self.folder / BALLAST).open("ab", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * size) == size:
                        continue
            file.truncate(max(0, file.tell() - leave))

    def empty(self) -> None:
        """Free what `fill` took."""
        (self.folder / BALLAST).unlink()

    def read_only(self, on: bool = True) -> None:
        """Refuse every write, or accept writes again."""
        mode = "ro" if on else "rw"
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.folder)], check=True)


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int = 8) -> Iterator[SmallDisk]:
    """Mount a small disk at `folder` for the block."""
    folder.mkdir()
    size = f"size={megabytes}m"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def cannot_mount(folder: Path) -> str:
    """Return why this machine does not let tests mount a file system; "" where it does."""
    if os.geteuid() != 0:
        return "only root may mount a small file system"
    try:
        with small_disk(folder):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no small file system can be mounted here: {error}"
