"""Labels from a text file, one image per line: `name x1,y1,x2,y2,class[,iscrowd] ...`.

The corners are in pixels; the class is an index into `coco_classes` (0 is the background).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.data.coco import NO_BOX, LabelledImage, Labels, as_text
from src.data.coco_boxes import some
from src.data.image_names import files_of
from src.errors import UserError, user_path

NUMBER = r"-?\d+(?:\.\d+)?"
BOX = re.compile(rf"{NUMBER}(?:,{NUMBER}){{4,5}}")


class TextLine(NamedTuple):
    """One image of the file: its name, and rows of x1, y1, x2, y2, class, iscrowd."""

    name: str
    rows: list[list[float]]


def read_text_annotations(anno_path: str | Path) -> list[TextLine]:
    """Return the file's non-empty lines; a name may contain spaces.

    Raises:
        UserError: the file is missing, has no image, or a line does not parse (named by number).
    """
    if not str(anno_path):
        raise UserError("anno_path is empty, expected the path of a text file")
    path = user_path(anno_path)
    try:
        text = as_text(path.read_bytes(), path)
    except OSError as error:
        raise UserError(f"anno_path {path}: cannot be read: {error.strerror}") from error
    lines = [
        _parse_line(line, f"{path}, line {number}")
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip()
    ]
    if not lines:
        raise UserError(f"anno_path {path}: no image in it; expected name x1,y1,x2,y2,class ...")
    return lines


def _parse_line(line: str, where: str) -> TextLine:
    words = line.split()
    first = next((i for i, word in enumerate(words) if "," in word and BOX.fullmatch(word)), None)
    boxes = [] if first is None else words[first:]
    name = " ".join(words if first is None else words[:first])
    odd = next((word for word in boxes if not BOX.fullmatch(word)), None)
    if odd is None and first is None and len(words) > 1 and "," in words[-1]:
        odd = words[-1]
    if odd is not None or not name:
        raise UserError(
            f"{where}: {odd or line.strip()!r}, expected name x1,y1,x2,y2,class[,iscrowd] ..."
        )
    rows = [[float(value) for value in word.split(",")] for word in boxes]
    return TextLine(name, [row if len(row) == 6 else [*row, 0.0] for row in rows])


def load_text_labels(
    image_dir: str | Path, anno_path: str | Path, classes: Sequence[str] = ()
) -> Labels:
    """Load the labelled images of a text file, which does not contain the images' sizes.

    Args:
        image_dir: the folder of the images.
        anno_path: the text file.
        classes: the class list, the background first; boxes of other classes are dropped and
            counted. () accepts all.

    Raises:
        UserError: see `read_text_annotations`; or images are missing, or no box is of any class.
    """
    folder = user_path(image_dir).absolute()
    labels = Labels(Path(anno_path), [], classes=list(classes), as_xywh=False)
    lines = read_text_annotations(anno_path)
    _require_known_class(lines, classes, anno_path)
    if not any(line.rows for line in lines):
        labels.cause = "no line of it has a box"
    files = files_of([line.name for line in lines], folder, labels.source, labels.image_notes)
    for (_, rows), path in zip(lines, files):
        kept = [row for row in rows if _is_usable(row, classes, labels.notes)]
        boxes = np.array(kept, np.float64).reshape(-1, 6)
        labels.images.append(LabelledImage(path, None, boxes, len(rows) - len(kept)))
    return labels


def _require_known_class(
    lines: list[TextLine], classes: Sequence[str], anno_path: str | Path
) -> None:
    """Raise a UserError if there are boxes, and none is of an object in `classes`."""
    numbers = {row[4] for line in lines for row in line.rows}
    if classes and numbers and not numbers & set(range(1, len(classes))):
        found = some([f"{number:g}" for number in sorted(numbers)])
        raise UserError(
            f"anno_path {anno_path}: no box is of a class in coco_classes, which has 1 to "
            f"{len(classes) - 1} (0 is the background): found {found}; correct the classes, or "
            "give the configuration with their list (--config_path)"
        )


def _is_usable(row: list[float], classes: Sequence[str], notes: Counter) -> bool:
    """Return whether x1, y1, x2, y2, class, iscrowd is a usable box; count others in `notes`."""
    x1, y1, x2, y2, category, _ = row
    if classes and category not in range(1, len(classes)):
        notes[f"of class {category:g}, not that of an object in coco_classes, dropped"] += 1
    elif x1 >= x2 or y1 >= y2:
        notes["of zero or negative size, dropped"] += 1
    elif max(abs(x1), abs(y1), abs(x2), abs(y2)) >= 2**31:
        notes["outside the image, dropped"] += 1
    else:
        return True
    return False


def create_train_data_from_txt(
    image_dir: str | Path, anno_path: str | Path
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return image files, and for each its (n, 6) int32 rows of x1, y1, x2, y2, class, iscrowd.

    Raises:
        UserError: see `load_text_labels`.
    """
    images = load_text_labels(image_dir, anno_path).images
    rows = {str(i.path): i.boxes.astype(np.int32) if len(i.boxes) else NO_BOX for i in images}
    return [str(i.path) for i in images], rows


def parse_json_annos_from_txt(anno_file: str | Path, config: Any) -> dict[str, list[dict]]:
    """Convert the text file to the content of a COCO json, for evaluation.

    Category ids are indexes into `config.coco_classes`, the background included; image and
    annotation ids count from 1.

    Raises:
        UserError: see `read_text_annotations`; or coco_classes does not have a class.
    """
    coco: dict[str, list[dict]] = {"images": [], "annotations": [], "categories": []}
    coco["categories"] = [{"id": i, "name": name} for i, name in enumerate(config.coco_classes)]
    for image_id, (name, rows) in enumerate(read_text_annotations(anno_file), 1):
        coco["images"].append({"id": image_id, "file_name": name})
        for x1, y1, x2, y2, category, crowd in rows:
            if not 0 <= category < len(config.coco_classes):
                raise UserError(
                    f"{anno_file}: class {category:g} of {name}, expected an index into "
                    f"coco_classes, below {len(config.coco_classes)}"
                )
            coco["annotations"].append(
                {
                    "id": len(coco["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": int(category),
                    "iscrowd": int(crowd),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                }
            )
    return coco
