"""Labels of another format as they are read: images, boxes with names, and what was odd.

Boxes are in the pixels that the file stores, as training decodes them: it does not heed the EXIF
orientation, by which programs for labelling turn an image before they show it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Tuple

from PIL import Image

from src.data.image_check import SUFFIXES
from src.errors import UserError

ORIENTATION = 0x0112  # EXIF 2.3, table 4

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
        names: of the classes, in the order that the folder gives; [] where it gives none.
        notes: counts what was odd, with an example.
    """

    splits: dict[str, list[SourceImage]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    notes: Notes = field(default_factory=lambda: Notes())


class Notes:
    """How often something odd was met, and where first."""

    def __init__(self) -> None:
        self._counts: Counter = Counter()
        self._first: dict[str, Path] = {}

    def add(self, what: str, where: Path) -> None:
        """Count `what`."""
        self._counts[what] += 1
        self._first.setdefault(what, where)

    def lines(self) -> list[str]:
        """One for each kind."""
        return [f"{n} {what}, first {self._first[what]}" for what, n in self._counts.items()]


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
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            orientation = image.getexif().get(ORIENTATION, 1)
            return Frame(image.size, orientation if orientation in range(1, 9) else 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def image_paths(folder: Path, notes: Notes) -> list[Path]:
    """The images below `folder`, sorted; those of other formats are counted."""
    found = []
    for path in sorted(folder.rglob("*")):
        suffix = path.suffix.lower()
        if suffix in SUFFIXES:
            found.append(path)
        elif suffix in (".bmp", ".gif", ".tif", ".tiff", ".webp"):
            notes.add("images of another format than JPEG and PNG, left out", path)
    return found


def read_text(path: Path, what: str) -> str:
    """The content of a text file.

    Raises:
        UserError: it cannot be read as text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {what} cannot be read as text: {error}") from error


def chosen_splits(there: list[str], wanted: str, default: tuple[str, ...], where: Path) -> list:
    """The splits to convert: those that --splits lists, else those of `default` that are there.

    Raises:
        UserError: one of them is not there, or none is.
    """
    names = [name.strip() for name in wanted.split(",")] if wanted else []
    names = names or [name for name in default if name in there]
    for name in names:
        if name not in there:
            raise UserError(f"--splits {name}: not in {where}, which has {', '.join(there)}")
    if not names:
        found = ", ".join(there[:8]) or "nothing"
        raise UserError(f"{where}: none of {', '.join(default)}, found {found}; give --splits")
    return names
