"""Read images to run the detector on, from files or a validation set; some may be corrupt."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from src.data.image_check import (
    MAX_PIXELS,
    OTHER_SUFFIXES,
    SUFFIXES,
    BrokenImageError,
    ImageHeader,
    decode_fully,
    image_header,
)
from src.errors import UserError, user_path
from src.printing import print
from src.progress import progress

NAMED = 5  # so many left-out images of an evaluation are named one by one


def find_images(given: Sequence[Path], flag: str) -> list[Path]:
    """Return the given files, and the JPEG and PNG files of given folders by name; each once.

    Raises:
        UserError: a path does not exist, or a folder has no image.
    """
    found: list[Path] = []
    for path in (user_path(one) for one in given):
        if path.is_dir():
            found += _in_folder(path, flag)
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{flag} {path}: no such file or folder")
    once: dict[Path, Path] = {}
    for path in found:
        once.setdefault(path.parent.resolve() / path.name, path)
    return list(once.values())


def _in_folder(folder: Path, flag: str) -> list[Path]:
    """Return the JPEG and PNG files of a folder by name; warn of images of other formats."""
    files = sorted(folder.iterdir())
    inside = [file for file in files if file.suffix.lower() in SUFFIXES]
    others = [file.name for file in files if file.suffix.lower() in OTHER_SUFFIXES]
    fix = f"{len(others)} images of other formats, first {'/'.join(others[:1])}: convert them"
    if not inside:
        there = f", but {fix}" if others else ""
        raise UserError(f"{flag} {folder}: no {', '.join(SUFFIXES)} file in this folder{there}")
    if others:
        warn(f"{folder}: left out {fix} to JPEG or PNG")
    return inside


class ImageReader:
    """Read images one after the other; leave out corrupt ones with a warning.

    Args:
        paths: the files.
        max_pixels: an image with more is left out.

    Attributes:
        sound: the files that were read so far, with their headers.
        skipped: the files that were left out so far.
    """

    def __init__(self, paths: Sequence[Path], max_pixels: int = MAX_PIXELS):
        self._paths = paths
        self._max_pixels = max_pixels
        self.sound: list[tuple[Path, ImageHeader]] = []
        self.skipped: list[Path] = []

    def __iter__(self) -> Iterator[tuple[Path, bytes]]:
        """Yield path and content of each sound image.

        Raises:
            UserError: at the end, if there was none.
        """
        for path in progress(self._paths, "images", "image"):
            try:
                encoded = path.read_bytes()
                header = image_header(encoded, self._max_pixels)
                decode_fully(encoded)
            except (OSError, BrokenImageError) as error:
                reason = getattr(error, "strerror", None) or error
                warn(f"{path} left out: {reason}")
                self.skipped.append(path)
                continue
            self.sound.append((path, header))
            yield path, encoded
        if not self.sound:
            raise UserError(f"none of the {len(self._paths)} images can be read, as said above")
        warn_of_scaled([header for _, header in self.sound])


class ImageCheck:
    """Yield those images of an evaluation that decode.

    Args:
        images: name and content of each.
        max_pixels: an image with more is left out.

    Attributes:
        sound: numbers, from 1, of the images that were yielded so far, and their headers.
        broken: name of each image that was left out, and why.
    """

    def __init__(self, images: Iterable[tuple[str, bytes]], max_pixels: int):
        self._images = images
        self._max_pixels = max_pixels
        self.sound: list[tuple[int, ImageHeader]] = []
        self.broken: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        for number, (name, encoded) in enumerate(self._images, 1):
            try:
                header = image_header(encoded, self._max_pixels)
                decode_fully(encoded)
            except BrokenImageError as error:
                self.broken.append((name, str(error)))
                continue
            self.sound.append((number, header))
            yield name, encoded

    def report(self) -> None:
        """Print to standard error what was left out, and what was changed."""
        for name, reason in self.broken[:NAMED]:
            warn(f"{name} is left out of the evaluation: {reason}")
        if len(self.broken) > NAMED:
            warn(f"{len(self.broken)} images are left out of the evaluation in all")
        warn_of_scaled([header for _, header in self.sound])


def warn(what: str) -> None:
    """Print a warning to standard error."""
    print(f"warning: {what}", file=sys.stderr, flush=True)


def warn_of_scaled(headers: Iterable[ImageHeader]) -> None:
    """Warn of the number of images with more bits than the detector takes, if there are any."""
    scaled = sum(header.bits > 8 for header in headers)
    if scaled:
        warn(f"{scaled} images of 16 bits are scaled to 8 by their own range, as for training")
