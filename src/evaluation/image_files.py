"""Images that a command was given: files and folders, of which some may be broken."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from src.data.image_check import SUFFIXES, BrokenImageError, decode_fully, image_size
from src.errors import UserError
from src.progress import progress


def find_images(given: Sequence[Path], flag: str) -> list[Path]:
    """Files as they are given, and the JPEG and PNG files of folders by name; each once.

    Raises:
        UserError: one is not there, or a folder has no image.
    """
    found: list[Path] = []
    for path in (Path(one).expanduser() for one in given):
        if path.is_dir():
            inside = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES)
            if not inside:
                raise UserError(f"{flag} {path}: no {', '.join(SUFFIXES)} file in this folder")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{flag} {path}: no such file or folder")
    once: dict[Path, Path] = {}
    for path in found:
        once.setdefault(path.parent.resolve() / path.name, path)
    return list(once.values())


class ImageReader:
    """Reads images one after the other; broken ones are left out with a warning.

    Args:
        paths: the files.

    Attributes:
        sound: the files that were read so far, with width and height.
        skipped: those that were left out.
    """

    def __init__(self, paths: Sequence[Path]):
        self._paths = paths
        self.sound: list[tuple[Path, tuple[int, int]]] = []
        self.skipped: list[Path] = []

    def __iter__(self) -> Iterator[tuple[Path, bytes]]:
        """Path and content of each sound image.

        Raises:
            UserError: at the end, where there was none.
        """
        for path in progress(self._paths, "images", "image"):
            try:
                encoded = path.read_bytes()
                size = image_size(encoded)
                decode_fully(encoded)
            except (OSError, BrokenImageError) as error:
                reason = getattr(error, "strerror", None) or error
                print(f"warning: {path} left out: {reason}", file=sys.stderr, flush=True)
                self.skipped.append(path)
                continue
            self.sound.append((path, size))
            yield path, encoded
        if not self.sound:
            raise UserError(f"none of the {len(self._paths)} images can be read, as said above")
