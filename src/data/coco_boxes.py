"""The boxes of a COCO json as rows of a MindRecord: read, matched to ids, clipped, counted."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.data.image_check import ImageHeader
from src.errors import UserError

FROM_MASK = "bbox_from_segmentation"  # key of an annotation whose bbox comes from its segmentation
FIRST_PIXEL = 1.05  # a box that ends there is in fractions of the image, or practically empty
FAR = 0.1  # of a side: boxes are not drawn further beyond the image

# Notes that are counted for boxes. These are no fault of the labels:
OTHER_CATEGORY = "of category"
AROUND_MASK = "without bbox, taken around their segmentation"
REMARKS = (OTHER_CATEGORY, AROUND_MASK)
# These are faults; with what to do if only they remain:
NO_CATEGORY = "whose category_id"
OTHER_IMAGE = "of an image that is not in the json, dropped"
IN_PARTS = "within the first pixel, as parts of the image (0 to 1) would be, dropped"
AS_CORNERS = "far beyond the image that would be within it as x1, y1, x2, y2, clipped"
CROWDS = "that are crowds (iscrowd 1)"
FIXES = {  # by the beginning of the note
    OTHER_IMAGE: "write the ids of its images into image_id",
    NO_CATEGORY: "write the ids of its categories into category_id",
    OTHER_CATEGORY: "give the configuration with its class list (--config_path)",
    "without": "write bbox as [x, y, width, height] in pixels",
    IN_PARTS: "multiply bbox by the image's width and height: COCO's are pixels",
    CROWDS: "write iscrowd 0 for single objects",
}


def some(names: Sequence[str], limit: int = 5) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def unknown_categories(coco: dict[str, Any], classes: list[str], json_path: Path) -> list[str]:
    """Return the names of the json's categories that are not an object class in `classes`.

    Raises:
        UserError: no category is, so that every box would be dropped; or one is a class in another
            spelling.
    """
    unknown = [str(c["name"]) for c in coco["categories"] if c["name"] not in classes[1:]]
    require_same_spelling(unknown, classes[1:], str(json_path))
    if len(unknown) < len(coco["categories"]) or not (unknown or coco["annotations"]):
        return unknown
    there = f"it has {some(unknown)}" if unknown else "its list of categories is empty"
    raise UserError(
        f"{json_path}: none of its categories is in coco_classes, so every box would be dropped: "
        f"{there}, coco_classes has {some(classes[1:])}; give the configuration with its class "
        "list (--config_path)"
    )


def require_same_spelling(unknown: Iterable[str], classes: Sequence[str], where: str) -> None:
    """Check that no name outside `classes` differs from one in it only in case or white space.

    Args:
        unknown: names in the labels that are not in `classes`.
        classes: names in the class list.
        where: the labels' file or folder.

    Raises:
        UserError: one does; it would lose its boxes without anybody wanting it.
    """
    spelt = {plain_name(name): name for name in classes}
    alike = [(name, spelt[plain_name(name)]) for name in unknown if plain_name(name) in spelt]
    if alike:
        pairs = some([f"{name!r} in the labels, {known!r} in the list" for name, known in alike])
        raise UserError(
            f"{where}: names that the class list spells differently (case or spaces): {pairs}; "
            "write them the same way in both: boxes of other names are dropped"
        )


def plain_name(name: str) -> str:
    """Return a class name without what people spell differently: case, spaces, Unicode form."""
    return " ".join(unicodedata.normalize("NFC", str(name)).casefold().split())


def match_ids(coco: dict[str, Any], notes: Counter) -> None:
    """Replace annotations' ids of images and categories that differ only in type.

    "1" and 1 are the same id if only one entry has it; `notes` counts the replacements.
    """
    for key, group in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in coco[group]}
        alike: dict[Any, list[Any]] = {}
        for id_ in known:
            alike.setdefault(plain_id(id_), []).append(id_)
        for annotation in coco["annotations"]:
            if key not in annotation or annotation[key] in known:
                continue
            same = alike.get(plain_id(annotation[key]), [])
            if len(same) == 1:
                annotation[key] = same[0]
                notes[f"whose {key} is text and the id a number (or reverse), matched"] += 1


def plain_id(id_: Any) -> Any:
    """Return an id without its type: an integer if its text is one."""
    text = str(id_).strip()
    try:
        return int(float(text)) if float(text).is_integer() and len(text) < 16 else int(text)
    except (ValueError, OverflowError):
        return text


def boxes_by_image(
    coco: dict[str, Any], classes: Sequence[str], notes: Counter
) -> dict[Any, list[list[float]]]:
    """Return image id -> unclipped x1, y1, x2, y2, class, iscrowd per box, in the json's order."""
    index = {name: number for number, name in enumerate(classes) if number}  # 0: the background
    names = {entry["id"]: entry["name"] for entry in coco["categories"]}
    boxes: dict[Any, list[list[float]]] = {entry["id"]: [] for entry in coco["images"]}
    for annotation in coco["annotations"]:
        image_id, category_id = annotation["image_id"], annotation.get("category_id")
        name = names.get(category_id, "")
        if image_id not in boxes:
            notes[OTHER_IMAGE] += 1
        elif category_id not in names:
            notes[f"{NO_CATEGORY} {category_id!r} is none of its categories, dropped"] += 1
        elif name not in index:
            notes[f"{OTHER_CATEGORY} {name!r}, not in coco_classes, dropped"] += 1
        else:
            box = box_of(annotation, notes)
            if box:
                x, y, w, h = box
                corners = (x, y, x + w, y + h)
                boxes[image_id].append([*corners, index[name], crowd_of(annotation, notes)])
    return boxes


def box_of(annotation: dict[str, Any], notes: Counter) -> tuple[float, float, float, float] | None:
    """Return x, y, width and height of an annotation in pixels; None, counted, if it has none."""
    bbox: Any = annotation.get("bbox")
    try:
        x, y, w, h = (float(value) for value in (() if isinstance(bbox, (str, dict)) else bbox))
    except (TypeError, ValueError, OverflowError):
        notes[_no_box(bbox)] += 1
        return None
    if not all(math.isfinite(v) and abs(v) < 2**31 for v in (x, y, w, h, x + w, y + h)):
        notes["without four finite numbers as bbox, dropped"] += 1
    elif w <= 0 or h <= 0:
        notes["of zero or negative size, dropped"] += 1
    elif _is_in_parts(x, y, w, h):
        notes[IN_PARTS] += 1
    else:
        if annotation.get(FROM_MASK):
            notes[AROUND_MASK] += 1
        return x, y, w, h
    return None


def _is_in_parts(*box: float) -> bool:
    """Return whether numbers look like fractions of an image: a corner or a centre, and a size."""
    x, y, w, h = box
    if min(x, y) < -FAR or max(box) > FIRST_PIXEL:
        return False
    is_whole = all(value.is_integer() for value in box)
    return not is_whole or max(x + w, y + h) <= FIRST_PIXEL


def _no_box(bbox: Any) -> str:
    if bbox is None or bbox == []:
        return "without bbox, dropped"
    kind = f" (it is {'text' if isinstance(bbox, str) else 'an object'})"
    return f"without four numbers as bbox{kind if isinstance(bbox, (str, dict)) else ''}, dropped"


def crowd_of(annotation: dict[str, Any], notes: Counter) -> int:
    """Return 1 if iscrowd is set, as a number, boolean or text; else 0."""
    value = annotation.get("iscrowd")
    word = str(value).strip().lower()
    if word in ("1", "1.0", "true", "yes"):
        return 1
    if word not in ("0", "0.0", "false", "no", "none", "null", ""):
        notes["whose iscrowd is neither 0 nor 1, taken as 0"] += 1
    return 0


def box_around(segmentation: Any) -> list[float] | None:
    """Return x, y, width, height of polygons or a run-length mask; None for anything else."""
    if isinstance(segmentation, dict):
        return _box_around_mask(segmentation)
    try:
        numbers = [float(value) for value in _flat(segmentation)]
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
    if len(numbers) < 6 or len(numbers) % 2:
        return None
    left, top = min(numbers[::2]), min(numbers[1::2])
    return [left, top, max(numbers[::2]) - left, max(numbers[1::2]) - top]


def _flat(values: Any) -> Iterator[Any]:
    """Yield the numbers of nested lists: programs write a polygon flat, or as pairs."""
    for value in values:
        if isinstance(value, list):
            yield from _flat(value)
        else:
            yield value


def _box_around_mask(mask: dict[str, Any]) -> list[float] | None:
    from pycocotools import mask as masks

    try:
        height, width = mask["size"]
        packed = masks.frPyObjects(mask, height, width) if _is_list(mask["counts"]) else mask
        return [float(value) for value in masks.toBbox(packed)]
    except (TypeError, ValueError, KeyError, OverflowError, AttributeError):
        return None


def _is_list(counts: Any) -> bool:
    return isinstance(counts, list)


def as_stored(corners: np.ndarray, header: ImageHeader) -> np.ndarray:
    """Convert corners (n, 4) on an image as EXIF rotates it to the pixels stored in its file."""
    return _turned(corners, header)


def as_shown(corners: np.ndarray, header: ImageHeader) -> np.ndarray:
    """Convert corners (n, 4) in an image's stored pixels to the image as EXIF rotates it."""
    # The inverse rotation: a quarter turn the other way; the others are their own inverse.
    back = {6: 8, 8: 6}.get(header.orientation, header.orientation)
    return _turned(corners, header._replace(size=header.shown, orientation=back))


def _turned(corners: np.ndarray, header: ImageHeader) -> np.ndarray:
    turned = [header.stored((x1, y1, x2, y2)) for x1, y1, x2, y2 in corners.tolist()]
    return np.array(turned, corners.dtype).reshape(-1, 4)


def rows_within(
    boxes: np.ndarray,
    size: tuple[int, int] | None,
    notes: Counter,
    as_corners: np.ndarray | None = None,
) -> np.ndarray:
    """Return boxes in whole pixels, clipped to the image, without those that become empty.

    The corners are truncated, not rounded, as the rows of existing MindRecord files are.

    Args:
        boxes: (n, 6) float64 x1, y1, x2, y2, class, iscrowd.
        size: (width, height) of the image; None does not clip.
        notes: counts the boxes that were changed or left out.
        as_corners: (n,) bool, see `fit_as_corners`: boxes counted separately if they are clipped.

    Returns:
        (m, 6) int32.
    """
    corners = boxes[:, :4]
    clipped = np.clip(corners, 0, np.array([*size, *size], np.float64)) if size else corners
    whole = np.trunc(clipped)
    inside, something = ((c[:, 0] < c[:, 2]) & (c[:, 1] < c[:, 3]) for c in (clipped, whole))
    changed = (whole != np.trunc(corners)).any(axis=1) & something
    odd = np.zeros(len(boxes), bool) if as_corners is None else as_corners
    for what, which in (
        ("outside the image, dropped", ~inside),
        ("below a pixel wide or high, dropped", inside & ~something),
        (AS_CORNERS, changed & odd),
        ("partly outside the image, clipped", changed & ~odd),
    ):
        if which.any():
            notes[what] += int(which.sum())
    return np.concatenate([whole, boxes[:, 4:]], axis=1)[something].astype(np.int32)


def fit_as_corners(boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Find boxes that may be written as x1, y1, x2, y2 in place of x, y, width, height.

    Args:
        boxes: (n, 6) float64, read as x, y, width, height, so that columns 2 and 3 are sums.
        size: (width, height) of the image that they were drawn on.

    Returns:
        Two (n,) bool arrays: the boxes whose numbers are corners of a box within the image; those
        of them that reach far beyond it when read as x, y, width, height.
    """
    sides = np.array(size, np.float64)
    first, last = boxes[:, :2], boxes[:, 2:4]
    second = last - first
    fit = ((first >= 0) & (second > first) & (second <= sides + 1)).all(axis=1)
    return fit, fit & (last > sides * (1 + FAR)).any(axis=1)


def crowded_words(objects: Counter, num_gts: int) -> str:
    """Return the warning about images with more objects than a batch can hold; '' if none.

    Args:
        objects: number of objects -> number of images with so many.
        num_gts: the batch's limit for each image; 0 for none.
    """
    images = sum(count for number, count in objects.items() if number > num_gts)
    if not (num_gts and images):
        return ""
    most = max(objects)
    return (
        f"{images} images have more than num_gts {num_gts} objects: the rest of them would be "
        f"learned as background; num_gts {most} holds all"
    )


def class_words(counts: Mapping[int, int], classes: Sequence[str], limit: int = 12) -> str:
    """Return the numbers of objects by class in words, the most common class first.

    Args:
        counts: class number -> number of objects.
        classes: the class list, the background first.
        limit: maximum number of classes that are named.
    """

    def name(number: int) -> str:
        return classes[number] if 0 < number < len(classes) else f"class {number}"

    most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    found = [f"{name(number)} {count}" for number, count in most if count]
    missing = [one for number, one in enumerate(classes) if number and not counts.get(number)]
    without = f"; none of {some(missing)}" if missing else ""
    return f"objects by class: {some(found, limit) or 'none'}{without}"


def dropped_words(dropped: int, kept: int) -> str:
    """Return the warning that most of the labels' boxes were left out; '' if not.

    Args:
        dropped: number of boxes that were left out.
        kept: number of those that are there, with or without crowds.
    """
    total = dropped + kept
    if dropped * 2 <= total:
        return ""
    return (
        f"most boxes of the labels were left out: {dropped} of {total} ({dropped / total:.0%}), "
        f"{kept} remain"
    )
