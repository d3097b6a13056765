"""YOLO labels: a text file for each image, `class x y width height` as fractions of the image.

Format: https://docs.ultralytics.com/datasets/detect. x, y are the centre of the box, on the image
as shown, rotated by its EXIF orientation. A polygon becomes its bounding box.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from src.data.image_check import OTHER_SUFFIXES, Corners, ImageHeader
from src.data.labels.files import alike, files_below, folders_of, read_text
from src.data.labels.source import (
    NamedBox,
    Notes,
    Source,
    SourceImage,
    chosen_splits,
    header_or_note,
)
from src.data.labels.yolo_folder import NAMES, KeyPoints, YoloFolder, read_folder
from src.errors import UserError
from src.progress import progress

COLUMNS = ("auto", "box", "polygon")
EXPECTED = "expected: class x y width height, each part between 0 and 1"
ROUNDING = 0.01  # rounding error of the programs that write the files
EDGE = 0.05  # numbers that reach further beyond the image are hardly boxes
BEYOND = 0.1  # a number further beyond the image is not a fraction of it
MOST = 0.8  # of the lines
NEAR = 0.4  # of a box's sides: key points are rarely further from it
CLOSED = 0.005  # how far four corners may be from a parallelogram
FIX = (
    "--columns=box if each begins with class x y width height and what follows is to be ignored, "
    "--columns=polygon if they are corners"
)


class Line(NamedTuple):
    """A line: its place, its class, how many numbers follow, and their possible meanings.

    Attributes:
        box: edges from the first four numbers, as fractions of the image; None if they are no box.
        polygon: edges of the box around all numbers as corners; None if they are no polygon.
        odd: the first number that is not a fraction of an image; None if all are.
    """

    where: str
    kind: int
    numbers: int
    box: Corners | None
    polygon: Corners | None
    odd: float | None


def parse_line(words: list[str], classes: int, where: str) -> tuple[Line, list[float]]:
    """Parse a line; return it and its numbers after the class.

    Raises:
        UserError: it has other text than numbers, too few numbers, or an unknown class.
    """
    try:
        index, *parts = (float(word) for word in words)
    except ValueError as error:
        raise UserError(f"{where}: {' '.join(words)!r:.60}, {EXPECTED}") from error
    if len(parts) < 4:
        raise UserError(f"{where}: {len(words)} numbers, {EXPECTED}")
    if index not in range(classes):
        raise UserError(f"{where}: class {words[0]}, expected 0 to {classes - 1}, as names has")
    box = polygon = None
    odd = next((part for part in parts if not _is_part(part)), None)
    if all(map(_is_part, parts[:4])):
        x, y, w, h = parts[:4]
        box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    if odd is None and len(parts) >= 6 and len(parts) % 2 == 0:
        polygon = (min(parts[::2]), min(parts[1::2]), max(parts[::2]), max(parts[1::2]))
    return Line(where, int(index), len(parts), box, polygon, odd), parts


def _is_part(value: float) -> bool:
    return -BEYOND <= value <= 1 + BEYOND


def _is_within(x: float, y: float, box: Corners, slack: float) -> bool:
    left, top, right, bottom = box
    dx, dy = slack * (right - left), slack * (bottom - top)
    return left - dx <= x <= right + dx and top - dy <= y <= bottom + dy


@dataclass
class _Seen:
    """Statistics of the lines with the same count of numbers: how many look like each kind."""

    first: str
    lines: int = 0
    inside: int = 0  # the first four are a box within the image
    closed: int = 0  # four corners are a parallelogram, as oriented boxes are
    visible: int = 0  # each third number after the box is 0, 1 or 2
    certain: int = 0  # the same, and one is 2, or another number is not a fraction
    tracked: int = 0  # one of the two numbers after the box is an integer, as a track id is
    points: int = 0  # pairs after the first four
    points_inside: int = 0  # of these, within the box
    points_near: int = 0  # of these, near it


@dataclass
class _AsCorners:
    """Statistics of lines with four numbers: are they x1 y1 x2 y2 instead of x y width height?"""

    first: str = ""
    boxes: int = 0
    fit: int = 0  # corners of a box within the image
    beyond: int = 0  # of these, with a box that reaches far beyond it as x y width height

    def add(self, line: Line, parts: list[float]) -> None:
        """Count a line."""
        x1, y1, x2, y2 = parts
        fits = 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1
        self.first = self.first or line.where
        self.boxes += 1
        self.fit += fits
        if fits and line.box is not None:
            edges = line.box
            self.beyond += min(edges) < -EDGE or max(edges) > 1 + EDGE

    def faults(self) -> list[str]:
        """Return the fault, if all lines may be corners and many can hardly be anything else."""
        if self.fit < self.boxes or self.beyond * 2 < self.boxes or not self.boxes:
            return []
        return [
            f"{self.first}: the lines look like class x1 y1 x2 y2: {self.beyond} of {self.boxes} "
            "boxes reach far beyond their image as class x y width height, and all of them lie "
            "within it as corners; write the middle and width and height"
        ]


class LineKinds:
    """Collects statistics of a data set's lines, and decides what the lines are.

    Args:
        key_points: kpt_shape of data.yaml; None if it has none.
        columns: one of COLUMNS; "auto" decides by the lines, the others are the user's choice.
    """

    def __init__(self, key_points: KeyPoints, columns: str = "auto"):
        self._key_points = key_points
        self._columns = columns
        self._seen: dict[int, _Seen] = {}
        self._corners = _AsCorners()

    def add(self, line: Line, parts: list[float]) -> None:
        """Count a line."""
        if line.numbers == 4:
            self._corners.add(line, parts)
        if line.numbers == 4 or self._columns != "auto" or self._key_points:
            return
        seen = self._seen.setdefault(line.numbers, _Seen(line.where))
        seen.lines += 1
        rest = parts[4:]
        seen.tracked += any(value.is_integer() for value in rest[:2])
        if line.numbers == 8:
            (x1, y1, x2, y2, x3, y3, x4, y4) = parts
            seen.closed += abs(x1 + x3 - x2 - x4) < CLOSED and abs(y1 + y3 - y2 - y4) < CLOSED
        if line.box is None:
            return
        left, top, right, bottom = line.box
        width = right - left
        seen.inside += (
            width > 0 and bottom > top and min(left, top) >= -EDGE
            and max(right, bottom) <= 1 + EDGE
        )  # fmt: skip
        is_visible = len(rest) % 3 == 0 and all(value in (0, 1, 2) for value in rest[2::3])
        seen.visible += is_visible
        seen.certain += (is_visible and 2 in rest[2::3]) or line.odd is not None
        for x, y in zip(rest[::3], rest[1::3]) if is_visible else zip(rest[::2], rest[1::2]):
            seen.points += 1
            seen.points_inside += x == y == 0 or _is_within(x, y, line.box, ROUNDING)
            seen.points_near += x == y == 0 or _is_within(x, y, line.box, NEAR)

    def decide(self, notes: Notes) -> tuple[set[int] | None, list[str]]:
        """Return the counts of numbers that begin with a box (None: all), and what is ambiguous.

        Args:
            notes: records key points that were recognised.
        """
        boxes, faults = {4}, self._corners.faults()
        if self._columns == "box":
            return None, faults
        if self._key_points:
            number, each = self._key_points
            boxes.add(4 + number * each)
        for count, seen in self._seen.items():
            if self._are_key_points(count, seen):
                boxes.add(count)
                for _ in range(seen.lines):
                    notes.add("boxes with key points behind them, which are not used", seen.first)
            else:
                fault = self._fault(count, seen)
                faults += [fault] if fault else []
        return boxes, faults

    def _are_key_points(self, count: int, seen: _Seen) -> bool:
        """Return whether they are certainly x, y, visibility after a box."""
        return (
            seen.visible == seen.lines
            and seen.inside == seen.lines
            and seen.points_inside >= MOST * seen.points
            and (count % 2 == 1 or seen.certain > 0)
        )

    def _fault(self, count: int, seen: _Seen) -> str:
        """Return why lines of this count are not read as polygons; '' if they are."""
        more = f" (and {seen.lines - 1} more such lines)" if seen.lines > 1 else ""
        said = f"{seen.first}: {count + 1} numbers{more}"
        if count % 2:
            what = "a confidence, a track or an angle" if count == 5 else "columns"
            return (
                f"{said} are no polygon, they may be class x y width height and {what}; give "
                "--columns=box to ignore what follows the box"
            )
        even = [other for other in self._seen if other % 2 == 0]
        odd = [other for other in self._seen if other % 2]
        is_tracker = count == 6 and (odd or seen.tracked >= MOST * seen.lines)
        if seen.closed >= MOST * seen.lines or (not odd and self._differ(even)):
            return ""
        if seen.inside < MOST * seen.lines and not is_tracker:
            return ""
        behind = "a confidence and a track" if is_tracker else "key points"
        fix = f"give {FIX}"
        if not is_tracker:
            fix = f"write kpt_shape into data.yaml for key points, or {fix}"
        return f"{said} may be a polygon, or class x y width height and {behind}; {fix}"

    def _differ(self, counts: list[int]) -> bool:
        """Return whether lines differ like polygons' lines: a set's key points have one count."""
        seen = [self._seen[count] for count in counts]
        fits = all(one.inside == one.lines and one.points_near == one.points for one in seen)
        return len(seen) > 2 or (len(seen) == 2 and not fits)


def edges_of(line: Line, boxes: set[int] | None, key_points: KeyPoints) -> Corners:
    """Return the edges of a line's box as fractions of the image.

    Args:
        boxes: from `LineKinds.decide`.
        key_points: kpt_shape.

    Raises:
        UserError: the numbers are neither, or not fractions of an image.
    """
    is_box = boxes is None or line.numbers in boxes
    if key_points and not is_box:
        raise UserError(
            f"{line.where}: {line.numbers + 1} numbers, {EXPECTED}; kpt_shape is {list(key_points)}"
        )
    found = line.box if is_box else line.polygon
    if found is None and line.odd is not None:
        raise UserError(f"{line.where}: {line.odd:g}, {EXPECTED}; are these pixels?")
    if found is None:
        raise UserError(f"{line.where}: {line.numbers + 1} numbers, {EXPECTED}")
    return found


SEEN_PIXELS = 0.5  # minimum clipping at the image's edge that is counted
NUMBERS = re.compile(r"\s*\d+(\.0*)?(\s+-?[\d.]+(e-?\d+)?){4,}\s*$", re.IGNORECASE | re.MULTILINE)


def read_yolo(folder: Path, splits: str = "", columns: str = "auto") -> Source:
    """Read the labels of a YOLO folder: data.yaml, or a list of classes with images and labels.

    Args:
        folder: a folder with data.yaml (names, train, val, test); else with classes.txt or
            obj.names, and as splits the lists train.txt, valid.txt or folders of such names.
        splits: names separated by commas; "" selects train, val and test if they exist. Without
            splits all images are the split "all".
        columns: "box": every line begins with x y width height, what follows is ignored; "polygon":
            more numbers than a box are corners; "auto": decides by the lines.

    Raises:
        UserError: the folder, the class names or the images are missing, or files are not YOLO's
            (lists all).
    """
    source = Source()
    found = read_folder(folder, source.notes)
    source.names, places = found.names, found.places
    labels = _Labels(found, source, columns)
    there = list(places.of_split)
    for name in chosen_splits(there, splits, found.said_by) if there else ():
        labels.add(name, places.images(name, is_asked=bool(splits)))
    places.note_others(splits)
    found.images.note_respelled(source.notes)
    labels.read()
    source.require_sound()
    if not any(source.splits.values()):
        odd = "; ".join(source.notes.lines())
        raise UserError(f"--source {folder}: no JPEG or PNG in it{': ' + odd if odd else ''}")
    return source


class _Labels:
    """Reads the labels of images: first all lines, then, once their kind is known, the boxes."""

    def __init__(self, folder: YoloFolder, source: Source, columns: str):
        self._folder = folder.images.folder
        self._source = source
        self._key_points = folder.key_points
        self._kinds = LineKinds(folder.key_points, columns)
        self._texts: dict[tuple, list[Path]] = {}
        for path in files_below(self._folder, (".txt",)):
            if path.name not in NAMES:
                self._texts.setdefault(self._key(path), []).append(path)
        self._stems = Counter(path.stem for path in folder.images.paths)
        there = (*folder.images.paths, *files_below(self._folder, OTHER_SUFFIXES))
        self._known = {self._key(path) for path in there}
        self._images: dict[str, list[tuple[SourceImage, ImageHeader, list[Line]]]] = {}
        self._used: dict[Path, Path] = {}

    def add(self, split: str, paths: Sequence[Path]) -> None:
        """Read the lines of a split's images."""
        found = self._images[split] = []
        for path in progress(paths, split, "image"):
            header = header_or_note(path, self._source.notes)
            if header is None:
                continue
            if header.orientation != 1:
                self._source.notes.add("images that EXIF turns, their boxes turned back", path)
            text = self._of_image(path)
            if text is None:
                words = "images without a label file, taken as images without a box"
                self._source.notes.add(words, path)
            elif self._used.setdefault(text, path) != path:
                self._source.faults.append(
                    f"{text}: it may be of {self._used[text]} or of {path}; rename or remove one"
                )
            lines = self._lines(text) if text else []
            found.append((SourceImage(path, header.size, []), header, lines))

    def _of_image(self, image: Path) -> Path | None:
        """Return the label file of an image.

        It has labels in place of images in its path, is next to the image, or has its name in a
        folder of the same split.
        """
        parts = list(image.parts)
        places = [image.with_suffix(".txt"), image.with_name(f"{image.name}.txt")]
        for kind in ("JPEGImages", "images"):
            if kind in parts[:-1]:
                last = len(parts) - 1 - parts[::-1].index(kind)
                other = Path(*parts[:last], "labels", *parts[last + 1 :])
                places.insert(0, other.with_suffix(".txt"))
        if self._stems[image.stem] == 1:
            places.append(self._folder / "labels" / f"{image.stem}.txt")
        found = next((place for place in places if place.is_file()), None)
        if found is None and self._folder in image.parents:
            same = self._texts.get(self._key(image), [])
            found = same[0] if len(same) == 1 else None
        return found

    def _key(self, path: Path) -> tuple:
        return (folders_of(PurePosixPath(path.relative_to(self._folder))), alike(path.stem))

    def _lines(self, path: Path) -> list[Line]:
        found = []
        try:
            text = read_text(path, "the labels")
        except UserError as error:
            self._source.faults.append(str(error))
            return []
        for number, words in enumerate(map(str.split, text.splitlines()), 1):
            try:
                if words:
                    where = f"{path}, line {number}"
                    line, parts = parse_line(words, len(self._source.names), where)
                    self._kinds.add(line, parts)
                    found.append(line)
            except UserError as error:
                self._source.faults.append(str(error))
        return found

    def read(self) -> None:
        """Make boxes from the lines of all splits."""
        boxes, faults = self._kinds.decide(self._source.notes)
        self._source.faults += faults
        for split, images in self._images.items():
            for image, header, lines in images:
                image.boxes = [] if faults else list(self._boxes(lines, header, boxes))
            self._source.splits[split] = [image for image, *_ in images]
        self._note_orphans()

    def _boxes(
        self, lines: list[Line], header: ImageHeader, kinds: set[int] | None
    ) -> Iterator[NamedBox]:
        names, notes = self._source.names, self._source.notes
        width, height = header.shown
        for line in lines:
            try:
                edges = edges_of(line, kinds, self._key_points)
                if not names[line.kind]:
                    raise UserError(
                        f"{line.where}: class {line.kind}, which has no name in the list of "
                        "classes; write it there"
                    )
            except UserError as error:
                self._source.faults.append(str(error))
                continue
            whole = tuple(v * side for v, side in zip(edges, (width, height, width, height)))
            corners = _clipped(whole, width, height)
            if max(abs(a - b) for a, b in zip(whole, corners)) >= SEEN_PIXELS:
                notes.add("boxes that reach beyond the image, clipped", line.where)
            if corners[0] >= corners[2] or corners[1] >= corners[3]:
                notes.add("boxes without an extent, left out", line.where)
                continue
            yield NamedBox(header.stored(corners), names[line.kind])

    def _note_orphans(self) -> None:
        """Count label files without an image, in the folders whose labels were used."""
        places = {path.parent for path in self._used} | {
            path.parent
            for paths in self._texts.values()
            for path in paths
            if "labels" in path.relative_to(self._folder).parts[:-1] or not self._used
        }
        orphans = []
        for path in sorted(path for paths in self._texts.values() for path in paths):
            if path in self._used or path.parent not in places or self._key(path) in self._known:
                continue
            text = path.read_bytes()[:1000].decode("utf-8", "replace").lstrip("\ufeff")
            if not text.strip() or NUMBERS.match(text):
                orphans.append(path)
                self._source.notes.add("label files without an image, left out", path)
        first = next((one.path for images in self._images.values() for one, *_ in images), None)
        if orphans and first and not self._used:
            self._source.faults.append(
                f"no label file is of an image: the first is {orphans[0]}, the first image "
                f"{first}; expected the same name, next to each other or in folders named labels "
                "and images"
            )


def _clipped(corners: Sequence[float], width: int, height: int) -> Corners:
    x1, y1, x2, y2 = corners
    return (
        min(max(x1, 0.0), width), min(max(y1, 0.0), height),
        min(max(x2, 0.0), width), min(max(y2, 0.0), height),
    )  # fmt: skip
