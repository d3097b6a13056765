"""Labels of another format as they are read: images, boxes with names, and what was odd.

Boxes are in the pixels that the file stores, as training decodes them: it does not heed the EXIF
orientation, by which programs for labelling turn an image before they show it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Tuple

from PIL import Image

from src.data.image_check import SUFFIXES, BrokenImageError, image_size
from src.data.label_files import Notes, files_below, split_of
from src.errors import UserError

OTHER_FORMATS = (
    ".avif", ".bmp", ".dcm", ".dicom", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".pbm", ".pgm",
    ".pnm", ".ppm", ".svs", ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
ORIENTATION = 0x0112  # EXIF 2.3, table 4

SHOWN = 3  # faults on the screen

Corners = Tuple[float, float, float, float]


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


class Frame(NamedTuple):
    """How an image is stored, (width, height), and the EXIF orientation by which it is shown."""

    size: tuple[int, int]
    orientation: int

    @property
    def shown(self) -> tuple[int, int]:
        """(width, height) as a program shows it."""
        return self.size[::-1] if self.orientation >= 5 else self.size

    def stored(self, corners: Corners) -> Corners:
        """Corners in the image as it is shown, in the pixels that are stored."""
        u1, v1, u2, v2 = corners
        (x1, y1), (x2, y2) = self._point(u1, v1), self._point(u2, v2)
        return (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))

    def _point(self, u: float, v: float) -> tuple[float, float]:
        width, height = self.size
        turned = {
            2: (width - u, v),
            3: (width - u, height - v),
            4: (u, height - v),
            5: (v, u),
            6: (v, height - u),
            7: (width - v, height - u),
            8: (width - v, u),
        }
        return turned.get(self.orientation, (u, v))


def frame_of(path: Path) -> Frame | None:
    """The frame of an image file, from its header; None where that is not a JPEG's or PNG's."""
    try:
        with warnings.catch_warnings():
            # How large an image may be is for the conversion to MindRecord to say.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=("JPEG", "PNG")) as image:
                orientation = image.getexif().get(ORIENTATION, 1)
                return Frame(image.size, orientation if orientation in range(1, 9) else 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def image_or_note(path: Path, notes: Notes) -> Frame | None:
    """The frame of an image file; where there is none, why is noted."""
    frame = frame_of(path)
    if frame is None:
        try:
            image_size(path.read_bytes())
            why = "it cannot be opened"
        except (OSError, BrokenImageError) as error:
            why = getattr(error, "strerror", None) or str(error)
        notes.add("images that cannot be used, left out", f"{path}: {why}")
    return frame


def image_paths(folder: Path, notes: Notes) -> list[Path]:
    """The images below `folder`, sorted; those of other formats are counted."""
    found = []
    for path in files_below(folder, (*SUFFIXES, *OTHER_FORMATS)):
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
