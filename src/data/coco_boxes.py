"""The boxes of a COCO json as rows of a MindRecord: classes by number, corners clipped, counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.errors import UserError


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def unknown_categories(coco: dict[str, Any], classes: list[str], json_path: Path) -> list[str]:
    """The names of the json's categories that are no object in `classes`.

    Raises:
        UserError: all of them; every box would be dropped.
    """
    unknown = [str(c["name"]) for c in coco["categories"] if c["name"] not in classes[1:]]
    if len(unknown) < len(coco["categories"]) or not (unknown or coco["annotations"]):
        return unknown
    there = f"it has {some(unknown)}" if unknown else "its list of categories is empty"
    raise UserError(
        f"{json_path}: none of its categories is in coco_classes, so every box would be dropped: "
        f"{there}, coco_classes has {some(classes[1:])}; give the configuration with its class "
        "list (--config_path)"
    )


def size_of(entry: dict[str, Any]) -> tuple[int, int] | None:
    """Width and height of an image's entry in pixels; None where it gives none that can be."""
    size: tuple[Any, Any] = (entry.get("width"), entry.get("height"))
    sound = all(isinstance(side, (int, float)) and 1 <= side < 2**31 for side in size)
    return (int(size[0]), int(size[1])) if sound else None


def rows_by_image(
    coco: dict[str, Any], sizes: dict[Any, Any], classes: Sequence[str], notes: Counter
) -> dict[Any, list[list[int]]]:
    """image id -> rows of x1, y1, x2, y2, class, iscrowd, in the json's order."""
    index = {name: number for number, name in enumerate(classes) if number}  # 0: the background
    names = {entry["id"]: entry["name"] for entry in coco["categories"]}
    rows: dict[Any, list[list[int]]] = {id_: [] for id_ in sizes}
    for annotation in coco["annotations"]:
        image_id, category_id = annotation["image_id"], annotation.get("category_id")
        name = names.get(category_id, f"id {category_id}")
        if image_id not in rows:
            notes["of an image that is not in the json, dropped"] += 1
        elif name not in index:
            notes[f"of category {name!r}, not in coco_classes, dropped"] += 1
        else:
            corners = _corners(annotation.get("bbox"), sizes[image_id], notes)
            if corners:
                crowd = int(annotation.get("iscrowd") in (1, True))
                rows[image_id].append([*corners, index[name], crowd])
    return rows


def _corners(bbox: Any, size: tuple[int, int] | None, notes: Counter) -> list[int] | None:
    """Corners in whole pixels, clipped to the image; None where no box is left.

    The sums are truncated, not rounded, as the rows of existing MindRecord files are.
    """
    try:
        x, y, w, h = (float(value) for value in bbox)
    except (TypeError, ValueError, OverflowError):
        notes["without four numbers as bbox, dropped"] += 1
        return None
    corners = [x, y, x + w, y + h]
    if not all(math.isfinite(value) and abs(value) < 2**31 for value in corners):
        notes["without four finite numbers as bbox, dropped"] += 1
        return None
    if w <= 0 or h <= 0:
        notes["of zero or negative size, dropped"] += 1
        return None
    width, height = size or (math.inf, math.inf)
    limits = (width, height, width, height)
    clipped = [min(max(value, 0.0), limit) for value, limit in zip(corners, limits)]
    if clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        notes["outside the image, dropped"] += 1
        return None
    row = [int(value) for value in clipped]
    if row != [int(value) for value in corners]:
        notes["partly outside the image, clipped"] += 1
    return row
