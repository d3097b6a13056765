"""Ground truth and detections side by side, read from a COCO json and a COCO result json."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.data.coco import image_folder, image_folders, read_coco, size_of
from src.data.image_check import peek
from src.data.image_names import ImageFolder, is_image_file
from src.errors import UserError, user_path
from src.model_utils.config import load_config

RESULT_KEYS = ("image_id", "category_id", "bbox", "score")


@dataclass(frozen=True)
class Box:
    """One box.

    Attributes:
        category: index in the json's list of categories; chooses the colour.
        name: of the category.
        corner: x, y of its upper left corner in pixels.
        size: width, height in pixels.
        score: 0 to 1; None for ground truth.
        crowd: stands for a group of objects (COCO's iscrowd).
    """

    category: int
    name: str
    corner: tuple[float, float]
    size: tuple[float, float]
    score: float | None = None
    crowd: bool = False


@dataclass
class LabelledPicture:
    """One image file, its ground truth (None: nobody labelled it), its detections, best first.

    With `turned` they are on the image as EXIF turns it.
    """

    image_id: Any
    path: Path
    truth: list[Box] | None = field(default_factory=list)
    detections: list[Box] = field(default_factory=list)
    turned: bool = False


def read_pictures(
    json_path: Path,
    results_path: Path,
    image_dir: str,
    score: float,
    count: int,
    image_ids: Sequence[object] = (),
) -> list[LabelledPicture]:
    """The images to draw.

    Args:
        json_path: COCO json of the images and the ground truth.
        results_path: COCO result json: a list of image_id, category_id, bbox (x, y, width,
            height), score.
        image_dir: the images; "" looks for them around the json.
        score: detections below it are left out.
        count: how many images, evenly spread over those that the results reach to.
        image_ids: these images in place of `count`: their ids, as numbers or as text.

    Raises:
        UserError: a file is missing or no such json, the two do not belong together, an image that
            is to be drawn is unknown or not there.
    """
    json_path = user_path(json_path).absolute()
    coco = read_coco(json_path)
    results = _read_results(user_path(results_path).absolute(), coco, json_path)
    evaluated = {entry["image_id"] for entry in results}
    pictures = _chosen(coco, json_path, count, image_ids, evaluated)
    folder = image_folder(coco, _folders(json_path, coco.get("info"), image_dir), json_path)
    finder = ImageFolder(folder)
    names = {entry["id"]: str(entry["file_name"]) for entry in coco["images"]}
    files = {id_: _file_of(finder, names[id_]) for id_ in pictures}
    found = {id_: LabelledPicture(id_, files[id_]) for id_ in pictures}
    _require_files(list(found.values()))
    for entry in coco["images"]:
        header = peek(files[entry["id"]]) if entry["id"] in found else None
        if header is not None:
            found[entry["id"]].turned = header.drawn_as_shown(size_of(entry))
    _add_boxes(found, coco, results, score)
    return list(found.values())


def _file_of(finder: ImageFolder, name: str) -> Path:
    found = finder.find(name)
    return found.path if found else finder.path / name


def _folders(json_path: Path, info: Any, image_dir: str) -> list[Path]:
    """Where the images may lie; first what the json is named by: instances_val2017 by val2017.

    File names alone do not tell: training and evaluation data may use the same ones.
    """
    config = load_config(image_dir=image_dir)
    found = [f for train in (True, False) for f in image_folders(config, json_path, info, train)]
    named = json_path.stem.rsplit("_", 1)[-1]
    return sorted(dict.fromkeys(found), key=lambda folder: folder.name != named)


def _read_results(path: Path, coco: dict[str, Any], json_path: Path) -> list[dict[str, Any]]:
    try:
        results = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(
            f"--results {path}: no such file; tools/evaluate.py --results writes one"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--results {path}: cannot be read as json: {error}") from error
    if not isinstance(results, list):
        raise UserError(
            f"--results {path}: a {type(results).__name__} where COCO's result format is a list "
            f"of objects with {', '.join(RESULT_KEYS)}"
        )
    for number, entry in enumerate(results):
        _check_result(entry, f"--results {path}: entry {number}")
    _require_known(results, coco, "image_id", "images", path, json_path)
    _require_known(results, coco, "category_id", "categories", path, json_path)
    return results


def _check_result(entry: Any, where: str) -> None:
    lacks = [k for k in RESULT_KEYS if not isinstance(entry, dict) or k not in entry]
    if lacks:
        raise UserError(f"{where}: has no '{lacks[0]}', expected {', '.join(RESULT_KEYS)}")
    if not _box_numbers(entry["bbox"]):
        raise UserError(f"{where}: bbox is {entry['bbox']!r:.60}, expected four finite numbers")
    if not _finite(entry["score"]):
        raise UserError(f"{where}: score is {entry['score']!r:.60}, expected a number")


def _require_known(
    results: list, coco: dict[str, Any], key: str, group: str, path: Path, json_path: Path
) -> None:
    """Raise a UserError where results name what the json does not have."""
    known = {entry["id"] for entry in coco[group]}
    odd = [entry[key] for entry in results if not _is_in(entry[key], known)]
    if odd:
        raise UserError(
            f"--results {path}: {len(odd)} of {len(results)} detections have another {key} than "
            f"the {group} of {json_path}, first {odd[0]!r:.60}; give the json that was "
            "evaluated"
        )


def _chosen(
    coco: dict[str, Any], json_path: Path, count: int, image_ids: Sequence[object], evaluated: set
) -> list[Any]:
    """Ids of the images to draw, in the order asked for or that of the json.

    Images behind the last one with a detection may not have been evaluated: they are not chosen.
    """
    ids = [entry["id"] for entry in coco["images"]]
    if image_ids:
        by_text: dict[str, list[Any]] = {}
        for id_ in ids:
            by_text.setdefault(str(id_), []).append(id_)
        unknown = [id_ for id_ in image_ids if str(id_) not in by_text]
        if unknown:
            raise UserError(
                f"--image_ids: {json_path} has no image with id {unknown[0]}; its {len(ids)} ids "
                f"begin with {', '.join(map(str, ids[:5]))}"
            )
        return list(dict.fromkeys(id_ for one in image_ids for id_ in by_text[str(one)]))
    ids = ids[: max((n for n, id_ in enumerate(ids, 1) if id_ in evaluated), default=len(ids))]
    count = min(count, len(ids))
    return [ids[i * len(ids) // count] for i in range(count)]


def _require_files(pictures: list[LabelledPicture]) -> None:
    missing = [p for p in pictures if not is_image_file(p.path)]
    if missing:
        raise UserError(
            f"{missing[0].path}: no such image ({len(missing)} of the {len(pictures)} to draw are "
            "missing); set --image_dir to the folder that has them"
        )


def _add_boxes(
    found: dict[Any, LabelledPicture], coco: dict[str, Any], results: list, score: float
) -> None:
    index = {entry["id"]: number for number, entry in enumerate(coco["categories"])}
    names = {entry["id"]: str(entry["name"]) for entry in coco["categories"]}

    def box(entry: dict[str, Any], **more: Any) -> Box:
        x, y, width, height = (float(value) for value in entry["bbox"])
        id_ = entry["category_id"]
        return Box(index[id_], names[id_], (x, y), (width, height), **more)

    for entry in coco["annotations"]:
        usable = entry.get("category_id") in names and _box_numbers(entry.get("bbox"))
        truth = found[entry["image_id"]].truth if entry["image_id"] in found and usable else None
        if truth is not None:
            truth.append(box(entry, crowd=entry.get("iscrowd") in (1, True)))
    for entry in sorted(results, key=lambda entry: -entry["score"]):
        if entry["image_id"] in found and entry["score"] >= score:
            detections = found[entry["image_id"]].detections
            detections.append(box(entry, score=float(entry["score"])))


def _finite(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _box_numbers(bbox: Any) -> bool:
    return isinstance(bbox, list) and len(bbox) == 4 and all(map(_finite, bbox))


def _is_in(value: Any, known: set) -> bool:
    """Whether a JSON value, which may be a list or an object, is one of `known`."""
    return isinstance(value, (int, float, str)) and value in known
