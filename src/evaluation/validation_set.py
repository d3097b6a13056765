"""Labelled images to evaluate on: a COCO json with its images, or a MindRecord shard.

Within an evaluation images count from 1 in the file's order and a category is its place in
coco_classes; the ids of the file come back in `ValidationSet.as_results`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Callable

import mindspore.dataset as ds
import numpy as np

from src.data.coco_json import (
    find_json,
    image_files,
    image_folder,
    image_folders,
    read_coco,
    shared_files,
)
from src.data.mindrecord_file import BASE_NAME, check_mindrecord
from src.errors import UserError
from src.model_utils.config import setting


@dataclass
class ValidationSet:
    """What a detector is measured on.

    Attributes:
        source: the json or MindRecord file.
        image_ids: id of each image in the file.
        categories: place in coco_classes -> (id in the file, name), for the classes of the file.
        truths: annotated boxes as `coco_metrics.box_figures` takes them.
        encoded: gives the images one after the other: a name for messages, and the JPEG or PNG.
        notes: what was left out of `truths`, counted.
        remark: what else is odd; "" where nothing is.
    """

    source: Path
    image_ids: list[Any]
    categories: dict[int, tuple[Any, str]]
    truths: list[dict[str, Any]]
    encoded: Callable[[], Iterator[tuple[str, bytes]]]
    notes: Counter = field(default_factory=Counter)
    remark: str = ""

    def __len__(self) -> int:
        return len(self.image_ids)

    def __str__(self) -> str:
        left_out = "".join(f"; {count} boxes {what}" for what, count in self.notes.items())
        boxes, classes = len(self.truths), len(self.categories)
        counts = f"{len(self)} images, {boxes} boxes of {classes} classes"
        return f"{self.source}: {counts}{left_out}" + (self.remark and f"; {self.remark}")

    def as_results(self, detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`detections` in COCO's result format with the file's own ids."""
        return [
            {
                **entry,
                "image_id": self.image_ids[entry["image_id"] - 1],
                "category_id": self.categories[entry["category_id"]][0],
            }
            for entry in detections
            if entry["category_id"] in self.categories
        ]


def open_validation(config: Any, worker: int = 0) -> ValidationSet:
    """The set that `config.val_set` names, its first `config.eval_limit` images.

    Args:
        config: val_set (a .json, else a .mindrecord or its folder), eval_limit, coco_classes, and
            what `image_folders` takes.
        worker: number that stands in for {worker} in val_set.

    Raises:
        UserError: no such set, images missing, or nothing to measure in it.
    """
    given = setting(config, "val_set").replace("{worker}", str(worker))
    if not given:
        raise UserError(
            "val_set is empty: evaluation needs labelled images; give the path of a COCO json or "
            "of a MindRecord folder, or set run_eval: False"
        )
    path = Path(given).expanduser()
    is_shard = path.is_dir() or path.suffix == ".mindrecord"
    opened = _from_mindrecord(config, path) if is_shard else _from_json(config, given)
    if not any(truth["iscrowd"] == 0 for truth in opened.truths):
        left_out = "; ".join(f"{count} {what}" for what, count in opened.notes.items())
        raise UserError(
            f"{opened.source}: no annotated box in {len(opened)} images, so there is nothing to "
            f"measure ({left_out or 'crowds do not count'}); give another val_set"
        )
    return opened


def _from_json(config: Any, given: str) -> ValidationSet:
    changed = _Overlaid(config, val_set=given)
    json_path = find_json(changed, is_training=False)
    coco = read_coco(json_path)
    index = {name: place for place, name in enumerate(config.coco_classes)}
    places = {c["id"]: index[c["name"]] for c in coco["categories"] if index.get(c["name"])}
    if not places:
        listed = ", ".join(str(c["name"]) for c in coco["categories"][:4]) or "none"
        raise UserError(
            f"{json_path}: none of its categories is in coco_classes (it has {listed}); give the "
            "config that the detector was trained with (--config_path), or another val_set"
        )
    images = coco["images"][: setting(config, "eval_limit") or None]
    folders = image_folders(changed, json_path, coco.get("info"), is_training=False)
    chosen = {**coco, "images": images}
    files = image_files(chosen, image_folder(chosen, folders, json_path), json_path)
    notes: Counter = Counter()
    names = {c["id"]: c["name"] for c in coco["categories"]}
    return ValidationSet(
        source=json_path,
        image_ids=[entry["id"] for entry in images],
        categories={place: (id_, names[id_]) for id_, place in places.items()},
        truths=_json_truths(coco["annotations"], images, places, names, notes),
        encoded=lambda: ((str(file), file.read_bytes()) for file in files),
        notes=notes,
        remark=shared_files(images),
    )


class _Overlaid:
    """A configuration with some keys of another value."""

    def __init__(self, config: Any, **values: Any):
        self.__dict__.update(vars(config), **values)


def _json_truths(
    annotations: list[dict], images: list[dict], places: dict, names: dict, notes: Counter
) -> list[dict[str, Any]]:
    """The boxes of `images` as the json has them, not rounded; `notes` counts those left out."""
    numbers = {entry["id"]: number for number, entry in enumerate(images, 1)}
    truths = []
    for entry in annotations:
        category, box = entry.get("category_id"), _box(entry.get("bbox"))
        if entry["image_id"] not in numbers:
            continue
        if category not in places:
            notes[f"of category {names.get(category, category)!r}, not in coco_classes"] += 1
        elif box is None:
            notes["without a usable bbox"] += 1
        else:
            area: Any = entry.get("area")
            sound = isinstance(area, (int, float)) and math.isfinite(area)
            truths.append(
                {
                    "image_id": numbers[entry["image_id"]],
                    "category_id": places[category],
                    "bbox": box,
                    "area": float(area) if sound else box[2] * box[3],
                    "iscrowd": int(entry.get("iscrowd") in (1, True)),
                }
            )
    return truths


def _box(bbox: Any) -> list[float] | None:
    """Four finite numbers with a positive width and height, or None."""
    try:
        x, y, width, height = (float(value) for value in bbox)
    except (TypeError, ValueError, OverflowError):
        return None
    sound = all(map(math.isfinite, (x, y, width, height))) and width > 0 and height > 0
    return [x, y, width, height] if sound else None


def _from_mindrecord(config: Any, path: Path) -> ValidationSet:
    """Images numbered from 0: a MindRecord does not keep their ids."""
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
    """One column of a MindRecord file, in its order."""
    data = ds.MindDataset(str(file), columns_list=[name], num_parallel_workers=1, shuffle=False)
    for row in data.create_dict_iterator(num_epochs=1, output_numpy=True):
        yield row[name]
