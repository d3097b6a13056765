"""The summary of a silo's labels: a small JSON file for whoever proposes the configuration.

It holds what `LabelStatistics` holds. It comes from another silo, so it is checked before use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.data.label_statistics import (
    LARGEST_ASPECT,
    LARGEST_RATIO,
    SIDE_STEP,
    SMALLEST_SIZE,
    LabelStatistics,
    Shape,
    require_usable_names,
)
from src.errors import UserError
from src.files import parsed_json, reason, write_whole

FORMAT = "label summary 1"
KEYS = ("format", "classes", "image_sizes", "objects", "boxes")
LARGEST_FILE = 16 * 2**20  # bytes
MOST_ENTRIES = 10_000  # of a histogram
LONGEST_SIDE = 2**16
MOST_OBJECTS = 100_000  # in an image, as in a MindRecord
MOST_COUNTED = 10**9
LONG_NUMBER = re.compile(rb"\d{20}")  # parsing thousands of digits takes minutes


def summary_of(statistics: LabelStatistics) -> dict[str, Any]:
    """Return the summary as JSON values; equal statistics give equal summaries."""
    boxes: dict[str, list[list[int]]] = {name: [] for name in statistics.classes}
    for (name, shape), count in sorted(statistics.boxes.items()):
        boxes[name].append([*shape, count])
    return {
        "format": FORMAT,
        "classes": list(statistics.classes),
        "image_sizes": [[*size, count] for size, count in sorted(statistics.image_sizes.items())],
        "objects": [[number, count] for number, count in sorted(statistics.objects.items())],
        "boxes": boxes,
    }


def write_summary(statistics: LabelStatistics, path: Path) -> None:
    """Write the summary, one line for each list.

    Raises:
        UserError: the file cannot be written.
    """
    content = summary_of(statistics)
    boxes = content.pop("boxes")
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    inner = [f"  {json.dumps(name)}: {json.dumps(rows)}" for name, rows in boxes.items()]
    text = ",\n".join([*lines, '"boxes": {\n' + ",\n".join(inner) + "\n}"])
    try:
        write_whole(path, f"{{\n{text}\n}}\n")
    except OSError as error:
        raise UserError(f"--summary {path}: cannot be written: {reason(error)}") from error


def read_summary(path: Path) -> LabelStatistics:
    """Read and check a summary.

    Raises:
        UserError: it cannot be read, or is no summary; names the first fault.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"--merge {path}: cannot be read: {error.strerror}") from error
    try:
        return _statistics(_parsed(data), path)
    except ValueError as error:
        raise UserError(
            f"--merge {path}: no summary of tools/propose_config.py: {error}; write it again with "
            "--summary"
        ) from error


def _parsed(data: bytes) -> Any:
    if len(data) > LARGEST_FILE:
        raise ValueError(f"it has more than {LARGEST_FILE} bytes")
    if LONG_NUMBER.search(data):
        raise ValueError("it has a number of 20 digits or more")
    return parsed_json(data)


def _statistics(content: Any, path: Path) -> LabelStatistics:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f'it does not begin with "format": {json.dumps(FORMAT)}')
    for key in sorted({*KEYS} ^ {*content}):
        raise ValueError(f"{key!r:.60} is {'missing' if key in KEYS else 'not known'}")
    names = content["classes"]
    if not isinstance(names, list):
        raise ValueError("classes is no list")
    require_usable_names(names, path)
    found = LabelStatistics(names)
    for width, height, count in _rows(content["image_sizes"], "image_sizes", *[_SIDE] * 2):
        found.image_sizes[width, height] += count
    for number, count in _rows(content["objects"], "objects", (0, MOST_OBJECTS)):
        found.objects[number] += count
    boxes = content["boxes"]
    if not isinstance(boxes, dict) or set(boxes) != set(names):
        raise ValueError("boxes does not have the names of classes")
    for name, rows in boxes.items():
        for *shape, count in _rows(rows, f"boxes of {name!r}", *_SHAPE):
            found.boxes[name, Shape(*shape)] += count
    _require_agreement(found)
    return found


_SIDE = (SIDE_STEP, LONGEST_SIDE)
_SHAPE = (
    (-LARGEST_ASPECT, LARGEST_ASPECT),
    (SMALLEST_SIZE, 0),
    (-LARGEST_RATIO, LARGEST_RATIO),
)


def _rows(rows: Any, what: str, *bounds: tuple[int, int]) -> Iterator[list[int]]:
    """Yield the rows of a histogram: whole numbers within their bounds, then a count."""
    if not isinstance(rows, list) or len(rows) > MOST_ENTRIES:
        raise ValueError(f"{what} is no list of up to {MOST_ENTRIES} entries")
    limits = [*bounds, (1, MOST_COUNTED)]
    for place, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(limits):
            raise ValueError(f"{what}[{place}] is {row!r:.60}, expected {len(limits)} numbers")
        for value, (low, high) in zip(row, limits):
            if type(value) is not int or not low <= value <= high:
                raise ValueError(
                    f"{what}[{place}] has {value!r:.60}, expected a whole number of {low} to {high}"
                )
        yield row


def _require_agreement(found: LabelStatistics) -> None:
    """Raise a ValueError if the histograms cannot be of the same images."""
    sized, counted = sum(found.image_sizes.values()), found.images
    if not counted or sized != counted:
        raise ValueError(f"image_sizes has {sized} images, and objects {counted}")
    boxes = sum(found.boxes.values())
    objects = sum(number * count for number, count in found.objects.items())
    if not boxes or boxes != objects:
        raise ValueError(f"boxes has {boxes} objects, and objects {objects}")
