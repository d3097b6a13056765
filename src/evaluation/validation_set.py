"""Labelled images to evaluate on: a COCO json with its images, or a MindRecord shard.

Within an evaluation, an image is known by its number from 1 in the file's order and a category by
its index in coco_classes; `ValidationSet.as_results` restores the ids of the file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Callable

import numpy as np

from src.data.coco import (
    find_json,
    image_files,
    image_folder,
    image_folders,
    read_coco,
    shared_files,
    size_of,
)
from src.data.coco_boxes import (
    OTHER_IMAGE,
    as_shown,
    as_stored,
    box_of,
    crowd_of,
    match_ids,
    require_same_spelling,
)
from src.data.image_check import ImageHeader, peek
from src.data.mindrecord import BASE_NAME, check_mindrecord
from src.errors import UserError, user_path
from src.model_utils.config import setting


@dataclass
class ValidationSet:
    """Hold the images and annotations that a detector is evaluated on.

    Attributes:
        source: the json or MindRecord file.
        image_ids: id of each image in the file.
        categories: index in coco_classes -> (id in the file, name), for the classes of the file.
        truths: annotated boxes as `metrics.box_figures` takes them.
        encoded: yields the images one after the other: a name for messages, and the JPEG or PNG.
        notes: what was left out of `truths` or changed in it, with counts.
        image_notes: what is unusual about images, with counts.
        turned: number of an image -> its header, where the file's boxes are on the image as EXIF
            rotates it; `truths` are in stored pixels, as detections are.
        remark: what else is unusual; "" for nothing.
    """

    source: Path
    image_ids: list[Any]
    categories: dict[int, tuple[Any, str]]
    truths: list[dict[str, Any]]
    encoded: Callable[[], Iterator[tuple[str, bytes]]]
    notes: Counter = field(default_factory=Counter)
    remark: str = ""
    image_notes: Counter = field(default_factory=Counter)
    turned: dict[int, ImageHeader] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __str__(self) -> str:
        left_out = "".join(f"; {count} boxes {what}" for what, count in (+self.notes).items())
        left_out += "".join(f"; {count} images {what}" for what, count in self.image_notes.items())
        boxes, classes = len(self.truths), len(self.categories)
        counts = f"{len(self)} images, {boxes} boxes of {classes} classes"
        return f"{self.source}: {counts}{left_out}" + (self.remark and f"; {self.remark}")

    def as_results(self, detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return `detections` in COCO's result format, with ids and boxes as the file has them."""
        return [
            {
                **entry,
                **self._box_in_file(entry),
                "image_id": self.image_ids[entry["image_id"] - 1],
                "category_id": self.categories[entry["category_id"]][0],
            }
            for entry in detections
            if entry["category_id"] in self.categories
        ]

    def _box_in_file(self, entry: dict[str, Any]) -> dict[str, list[float]]:
        """Return the box as the file has boxes, for an image that EXIF rotates; else {}."""
        header = self.turned.get(entry["image_id"])
        return {"bbox": _moved(entry["bbox"], as_shown, header)} if header else {}


def open_validation(config: Any, worker: int = 0) -> ValidationSet:
    """Open the set that `config.val_set` names, its first `config.eval_limit` images.

    Args:
        config: provides val_set (a .json, else a .mindrecord or its folder), eval_limit,
            coco_classes, and the keys for `image_folders`.
        worker: number that replaces {worker} in val_set.

    Raises:
        UserError: no such set, images missing, or nothing to measure in it.
    """
    given = setting(config, "val_set").replace("{worker}", str(worker))
    if not given:
        raise UserError(
            "val_set is empty: evaluation needs labelled images; give the path of a COCO json or "
            "of a MindRecord folder, or set run_eval: False"
        )
    path = user_path(given)
    is_shard = path.is_dir() or path.suffix == ".mindrecord"
    opened = _from_mindrecord(config, path) if is_shard else _from_json(config, given)
    if not any(truth["iscrowd"] == 0 for truth in opened.truths):
        left_out = "; ".join(f"{count} {what}" for what, count in (+opened.notes).items())
        crowds = f"crowds do not count: {len(opened.truths)} of them" if opened.truths else ""
        raise UserError(
            f"{opened.source}: no annotated box in {len(opened)} images, so there is nothing to "
            f"measure ({left_out or crowds or 'it has none'}); give another val_set"
        )
    return opened


def _from_json(config: Any, given: str) -> ValidationSet:
    changed = _Overlaid(config, val_set=given)
    json_path = find_json(changed, is_training=False)
    coco = read_coco(json_path)
    index = {name: place for place, name in enumerate(config.coco_classes)}
    places = {c["id"]: index[c["name"]] for c in coco["categories"] if index.get(c["name"])}
    unknown = [str(c["name"]) for c in coco["categories"] if c["id"] not in places]
    require_same_spelling(unknown, config.coco_classes[1:], str(json_path))
    if not places:
        listed = ", ".join(str(c["name"]) for c in coco["categories"][:4]) or "none"
        raise UserError(
            f"{json_path}: none of its categories is in coco_classes (it has {listed}); give the "
            "config that the detector was trained with (--config_path), or another val_set"
        )
    images = coco["images"][: setting(config, "eval_limit") or None]
    folders = image_folders(changed, json_path, coco.get("info"), is_training=False)
    chosen = {**coco, "images": images}
    notes, image_notes = Counter[str](), Counter[str]()
    folder = image_folder(chosen, folders, json_path)
    files = image_files(chosen, folder, json_path, image_notes)
    match_ids(coco, notes)
    turned = _turned(images, files)
    if turned:
        image_notes["that EXIF turns, labelled as shown: boxes turned back"] = len(turned)
    names = {c["id"]: c["name"] for c in coco["categories"]}
    return ValidationSet(
        source=json_path,
        image_ids=[entry["id"] for entry in images],
        categories={place: (id_, names[id_]) for id_, place in places.items()},
        truths=[
            {**truth, "bbox": _moved(truth["bbox"], as_stored, turned[truth["image_id"]])}
            if truth["image_id"] in turned
            else truth
            for truth in _json_truths(coco, images, places, names, notes)
        ],
        encoded=lambda: ((str(file), file.read_bytes()) for file in files),
        notes=notes,
        remark=shared_files(images),
        image_notes=image_notes,
        turned=turned,
    )


def _turned(images: list[dict[str, Any]], files: list[Path]) -> dict[int, ImageHeader]:
    """Return number -> header of the images whose boxes are on them as EXIF rotates them."""
    headers = {number: peek(file) for number, file in enumerate(files, 1)}
    return {
        number: header
        for (number, header), entry in zip(headers.items(), images)
        if header and header.drawn_as_shown(size_of(entry))
    }


def _moved(bbox: list[float], move: Callable, header: ImageHeader) -> list[float]:
    """Move a box (x, y, width, height) by `as_stored` or `as_shown`."""
    x, y, width, height = bbox
    (corners,) = move(np.array([[x, y, x + width, y + height]]), header)
    x1, y1, x2, y2 = corners.tolist()
    return [x1, y1, x2 - x1, y2 - y1]


class _Overlaid:
    """Copy a configuration with other values for some keys."""

    def __init__(self, config: Any, **values: Any):
        self.__dict__.update(vars(config), **values)


def _json_truths(
    coco: dict[str, Any], images: list[dict], places: dict, names: dict, notes: Counter
) -> list[dict[str, Any]]:
    """Return the boxes of `images` in the json, not rounded; `notes` counts those left out."""
    numbers = {entry["id"]: number for number, entry in enumerate(images, 1)}
    known = {entry["id"] for entry in coco["images"]}
    truths = []
    for entry in coco["annotations"]:
        category = entry.get("category_id")
        if entry["image_id"] not in numbers:
            notes[OTHER_IMAGE] += entry["image_id"] not in known
            continue
        if category not in places:
            notes[f"of category {names.get(category, category)!r}, not in coco_classes"] += 1
            continue
        box = box_of(entry, notes)
        if box is not None:
            truths.append(
                {
                    "image_id": numbers[entry["image_id"]],
                    "category_id": places[category],
                    "bbox": list(box),
                    "area": _area(entry.get("area"), box, notes),
                    "iscrowd": crowd_of(entry, notes),
                }
            )
    return truths


def _area(said: Any, box: tuple[float, ...], notes: Counter) -> float:
    """Return an object's area in pixels: the box's where the file has no valid area."""
    is_number = isinstance(said, (int, float)) and math.isfinite(said)
    if is_number and said >= 0:
        return float(said)
    if is_number:
        notes["of a negative area, that of their bbox taken"] += 1
    return box[2] * box[3]


def _from_mindrecord(config: Any, path: Path) -> ValidationSet:
    """Open a MindRecord; image ids count from 0, since it does not keep the original ids."""
    file = path / (setting(config, "prefix") or BASE_NAME) if path.is_dir() else path
    count = check_mindrecord(file, classes=config.coco_classes)
    limit = setting(config, "eval_limit")
    count = min(count, limit or count)
    truths = []
    for number, boxes in enumerate(islice(_column(file, "annotation"), count), 1):
        real = boxes[(boxes[:, :2] < boxes[:, 2:4]).all(axis=1)]
        truths += [_row_truth(number, row) for row in real.tolist()]
    known = len(config.coco_classes)
    largest = max((truth["category_id"] for truth in truths), default=0)
    if largest >= known:
        raise UserError(
            f"{file}: holds a box of class {largest}, and coco_classes lists {known} names; give "
            "the config that it was written with (--config_path)"
        )
    return ValidationSet(
        source=file.absolute(),
        image_ids=list(range(count)),
        categories={place: (place, config.coco_classes[place]) for place in range(1, known)},
        truths=truths,
        encoded=lambda: _row_images(file, count),
    )


def _row_images(file: Path, count: int) -> Iterator[tuple[str, bytes]]:
    for number, image in enumerate(islice(_column(file, "image"), count)):
        yield f"{file}, image {number}", image.tobytes()


def _row_truth(number: int, row: list[int]) -> dict[str, Any]:
    x1, y1, x2, y2, category, crowd = row
    box = [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]
    truth = {"image_id": number, "category_id": category, "bbox": box, "iscrowd": crowd}
    return {**truth, "area": box[2] * box[3]}


def _column(file: Path, name: str) -> Iterator[np.ndarray]:
    """Yield one column of a MindRecord file, in its order."""
    # Imported late: MindSpore's import takes seconds, and launchers look at json files.
    from mindspore.dataset import MindDataset

    data = MindDataset(str(file), columns_list=[name], num_parallel_workers=1, shuffle=False)
    for row in data.create_dict_iterator(num_epochs=1, output_numpy=True):
        yield row[name]
