"""What the numbers of YOLO's lines mean: a box, a polygon, or a box with columns behind it.

A line says no word about it: six numbers may be three corners, or a box, a confidence and a track.
So all lines of a data set are looked at before one is believed, and where they leave it open they
are refused. Formats: https://docs.ultralytics.com/datasets, pages detect, segment, obb and pose.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from src.data.image_check import Corners
from src.data.label_source import Notes
from src.data.yolo_folder import KeyPoints
from src.errors import UserError

COLUMNS = ("auto", "box", "polygon")
EXPECTED = "expected: class x y width height, each part between 0 and 1"
ROUNDING = 0.01  # of the programs that write the files
EDGE = 0.05  # boxes that reach further beyond the image are hardly boxes
BEYOND = 0.1  # what reaches further beyond the image is no part of it
MOST = 0.8  # of the lines
NEAR = 0.4  # of a box's sides: key points are rarely further from it
CLOSED = 0.005  # how far four corners may be from a parallelogram
FIX = (
    "--columns=box if each begins with class x y width height and what follows is to be ignored, "
    "--columns=polygon if they are corners"
)


class Line(NamedTuple):
    """A line: where it stands, its class, how many numbers follow, and what they would be.

    Attributes:
        box: edges by the first four numbers, in parts of the image; None where they are none.
        polygon: edges of what is around all numbers as corners; None where they are none.
        odd: the first number that is no part of an image; None where all are.
    """

    where: str
    kind: int
    numbers: int
    box: Corners | None
    polygon: Corners | None
    odd: float | None


def parse_line(words: list[str], classes: int, where: str) -> tuple[Line, list[float]]:
    """A line and its numbers behind the class.

    Raises:
        UserError: no numbers, too few, or another class than there are.
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
    """Of the lines with one count of numbers: how many look like what."""

    first: str
    lines: int = 0
    inside: int = 0  # the first four are a box within the image
    closed: int = 0  # four corners are a parallelogram, as oriented boxes are
    visible: int = 0  # each third number behind the box is 0, 1 or 2
    certain: int = 0  # and one is 2, or another number is no part of an image
    tracked: int = 0  # one of the two numbers behind the box is whole, as a track is
    points: int = 0  # pairs behind the first four
    points_inside: int = 0  # of these, within the box
    points_near: int = 0  # of these, not far from it


@dataclass
class _AsCorners:
    """Of the lines with four numbers: whether they are x1 y1 x2 y2 in place of x y width height."""

    first: str = ""
    boxes: int = 0
    fit: int = 0  # corners of a box within the image
    beyond: int = 0  # of these, with a box that reaches far beyond it as x y width height

    def add(self, line: Line, parts: list[float]) -> None:
        """Look at a line."""
        x1, y1, x2, y2 = parts
        fits = 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1
        self.first = self.first or line.where
        self.boxes += 1
        self.fit += fits
        if fits and line.box is not None:
            edges = line.box
            self.beyond += min(edges) < -EDGE or max(edges) > 1 + EDGE

    def faults(self) -> list[str]:
        """What is wrong, where all may be corners and many can hardly be anything else."""
        if self.fit < self.boxes or self.beyond * 2 < self.boxes or not self.boxes:
            return []
        return [
            f"{self.first}: the lines look like class x1 y1 x2 y2: {self.beyond} of {self.boxes} "
            "boxes reach far beyond their image as class x y width height, and all of them lie "
            "within it as corners; write the middle and width and height"
        ]


class LineKinds:
    """Gathers how the lines of a data set look, and decides what they are.

    Args:
        key_points: kpt_shape of data.yaml; None where it has none.
        columns: one of COLUMNS; "auto" looks, the others are the user's word.
    """

    def __init__(self, key_points: KeyPoints, columns: str = "auto"):
        self._key_points = key_points
        self._columns = columns
        self._seen: dict[int, _Seen] = {}
        self._corners = _AsCorners()

    def add(self, line: Line, parts: list[float]) -> None:
        """Look at a line."""
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
        """The counts of numbers that begin with a box, None for all; and what is not clear.

        Args:
            notes: is told of key points that were recognized.
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
        """Whether they are certainly x, y, visibility behind a box."""
        return (
            seen.visible == seen.lines
            and seen.inside == seen.lines
            and seen.points_inside >= MOST * seen.points
            and (count % 2 == 1 or seen.certain > 0)
        )

    def _fault(self, count: int, seen: _Seen) -> str:
        """Why lines of this count are not read as polygons; '' where they are."""
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
        """Whether lines differ as those of polygons do: a set's key points have one count."""
        seen = [self._seen[count] for count in counts]
        fits = all(one.inside == one.lines and one.points_near == one.points for one in seen)
        return len(seen) > 2 or (len(seen) == 2 and not fits)


def edges_of(line: Line, boxes: set[int] | None, key_points: KeyPoints) -> Corners:
    """The edges of a line's box in parts of the image.

    Args:
        boxes: from `LineKinds.decide`.
        key_points: kpt_shape.

    Raises:
        UserError: the numbers are neither, or no parts of an image.
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
