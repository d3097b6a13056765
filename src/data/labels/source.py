"""Labels of another format as they are read: images, boxes with names, and what was odd.

Boxes are in the pixels that the file stores, as training decodes them: it does not heed the EXIF
orientation, by which programs for labelling turn an image before they show it.
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

SHOWN = 3  # faults on the screen


class NamedBox(NamedTuple):
    """x1, y1, x2, y2 as edges in pixels from 0; its class by name; flags that go into the json."""

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
    """What a folder of labels holds.

    Attributes:
        splits: name -> images.
        names: of the classes, in the order that the folder gives; [] where it gives none, "" where
            it leaves one out.
        notes: counts what was odd, with each case.
        faults: what cannot be read, a line each.
    """

    splits: dict[str, list[SourceImage]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)
    faults: list[str] = field(default_factory=list)

    def require_sound(self) -> None:
        """Raise a FaultyLabelsError where anything could not be read."""
        if self.faults:
            # An image in two splits is read twice.
            raise FaultyLabelsError(list(dict.fromkeys(self.faults)))


class FaultyLabelsError(UserError):
    """Labels that cannot be read: all of them, so that one run names what one has to correct.

    Attributes:
        faults: a line for each.
    """

    def __init__(self, faults: Sequence[str]):
        self.faults = list(faults)
        first = "; ".join(self.faults[:SHOWN])
        more = len(self.faults) > SHOWN
        super().__init__(
            f"{len(self.faults)} faults in the labels, first {first}" if more else first
        )


def header_or_note(path: Path, notes: Notes) -> ImageHeader | None:
    """The header of an image file; where it has no sound one, why is noted."""
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
    """The images below `folder`, sorted; those of other formats are counted."""
    found = []
    for path in files_below(folder, (*SUFFIXES, *OTHER_SUFFIXES)):
        if path.suffix.lower() in SUFFIXES:
            found.append(path)
        else:
            notes.add("images of another format than JPEG and PNG, left out: convert them", path)
    return found


def chosen_splits(there: Sequence[str], wanted: str, where: Path) -> list[str]:
    """The splits to convert: those that --splits lists, else train, val and test.

    Where there is no train, trainval takes its place, else "all", what is in no split.

    Args:
        there: names of the splits that are there, by their usual names.
        wanted: the value of --splits.
        where: what has them.

    Raises:
        UserError: one of them is not there, or none is.
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
    """Usual name -> name of splits: valid and Validation are val, unless val is there too."""
    usual: dict[str, str] = {name: name for name in names if name == split_of([name])}
    for name in names:
        short = split_of([name])
        usual.setdefault(short if short and short not in usual else name, name)
    return usual
