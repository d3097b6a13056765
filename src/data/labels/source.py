"""Labels of another format as read: images, boxes with names, and irregularities.

Boxes are in the pixels stored in the file, as training decodes them. Training ignores the EXIF
orientation, by which labelling programs rotate an image before they show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from src.data.image_check import (
    OTHER_SUFFIXES,
    SUFFIXES,
    BrokenImageError,
    Corners,
    ImageHeader,
    image_header,
    peek,
)
from src.data.labels.files import Notes, files_below, split_of
from src.errors import UserError

SHOWN = 3  # number of faults on the screen


class NamedBox(NamedTuple):
    """A box: edges x1, y1, x2, y2 in pixels from 0, its class name, and flags for the json."""

    corners: Corners
    name: str
    crowd: bool = False
    flags: dict = {}


@dataclass
class SourceImage:
    """An image file, its stored (width, height), and its boxes."""

    path: Path
    size: tuple[int, int]
    boxes: list[NamedBox]


@dataclass
class Source:
    """The content of a label folder.

    Attributes:
        splits: name -> images.
        names: the class names, in the folder's order; [] if it gives none, "" where one is missing.
        notes: counts of irregularities, with each case.
        faults: what cannot be read, one line each.
    """

    splits: dict[str, list[SourceImage]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)
    faults: list[str] = field(default_factory=list)

    def require_sound(self) -> None:
        """Raise a FaultyLabelsError if anything could not be read."""
        if self.faults:
            # An image in two splits is read twice.
            raise FaultyLabelsError(list(dict.fromkeys(self.faults)))


class FaultyLabelsError(UserError):
    """Labels cannot be read; the error has all of them, so that one run lists what to correct.

    Attributes:
        faults: one line for each fault.
    """

    def __init__(self, faults: Sequence[str]):
        self.faults = list(faults)
        first = "; ".join(self.faults[:SHOWN])
        more = len(self.faults) > SHOWN
        super().__init__(
            f"{len(self.faults)} faults in the labels, first {first}" if more else first
        )


def header_or_note(path: Path, notes: Notes) -> ImageHeader | None:
    """Return the header of an image file; return None and note why if it is invalid."""
    header = peek(path)
    if header is None:
        try:
            image_header(path.read_bytes())
            why = "it cannot be opened"
        except (OSError, BrokenImageError) as error:
            why = getattr(error, "strerror", None) or str(error)
        notes.add("images that cannot be used, left out", f"{path}: {why}")
    return header


def image_paths(folder: Path, notes: Notes) -> list[Path]:
    """Return the sorted images below `folder`; count those of other formats."""
    found = []
    for path in files_below(folder, (*SUFFIXES, *OTHER_SUFFIXES)):
        if path.suffix.lower() in SUFFIXES:
            found.append(path)
        else:
            notes.add("images of another format than JPEG and PNG, left out: convert them", path)
    return found


def chosen_splits(there: Sequence[str], wanted: str, where: Path) -> list[str]:
    """Return the splits to convert: those in --splits, else train, val and test.

    Without train, trainval replaces it, else "all", the images that are in no split.

    Args:
        there: the usual names of the existing splits.
        wanted: the value of --splits.
        where: the file or folder that has them.

    Raises:
        UserError: one of them is missing, or there are none.
    """
    names = [name.strip() for name in wanted.split(",")] if wanted else []
    for place, name in enumerate(names):
        names[place] = name if name in there else split_of([name]) or name
        if names[place] not in there:
            raise UserError(f"--splits {name}: not in {where}, which has {', '.join(there)}")
    if not names:
        instead = next((name for name in ("train", "trainval", "all") if name in there), "")
        names = [name for name in (instead, "val", "test") if name in there]
    if not names and len(there) == 1:
        names = list(there)
    if not names:
        found = ", ".join(there[:8]) or "nothing"
        raise UserError(f"{where}: none of train, val, test, found {found}; give --splits")
    return names


def usual_names(names: Sequence[str]) -> dict[str, str]:
    """Return usual name -> name of splits: valid and Validation are val, unless val exists too."""
    usual: dict[str, str] = {name: name for name in names if name == split_of([name])}
    for name in names:
        short = split_of([name])
        usual.setdefault(short if short and short not in usual else name, name)
    return usual
