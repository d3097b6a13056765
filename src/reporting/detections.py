"""Read images with ground truth and detections, from a COCO JSON and a COCO result JSON.

Images with the most errors come first. Errors are missed objects and false detections, at the given
score and an IoU of 0.5, see `src.evaluation.matching`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from src.data.coco import image_folder, image_folders, read_coco, size_of
from src.data.image_check import peek
from src.data.image_names import ImageFolder, is_image_file
from src.errors import UserError, user_path
from src.evaluation.matching import Matches, match
from src.model_utils.config import load_config

FOUND, MISSED, FALSE = "found", "missed", "false"
# What became of a box, and of a confused pair the position of the other.
Outcome = tuple[str, Optional[int]]
UNCOUNTED: Outcome = ("", None)
RESULT_KEYS = ("image_id", "category_id", "bbox", "score")


@dataclass(frozen=True)
class Box:
    """Describe one box.

    Attributes:
        category: index in the json's list of categories; chooses the colour.
        name: name of the category.
        corner: x, y of its upper left corner in pixels.
        size: width, height in pixels.
        score: 0 to 1; None for ground truth.
        crowd: the box is a group of objects (COCO's iscrowd).
        outcome: of an object FOUND or MISSED, of a detection FOUND or FALSE; "" is not counted.
        other: for an object that was detected as another class, or for that detection, the name of
            the other's class.
    """

    category: int
    name: str
    corner: tuple[float, float]
    size: tuple[float, float]
    score: float | None = None
    crowd: bool = False
    outcome: str = ""
    other: str = ""


@dataclass
class LabelledPicture:
    """Describe an image file, its ground truth (None: unlabelled) and detections, best first.

    With `turned` the boxes are on the image as rotated by EXIF.
    """

    image_id: Any
    path: Path
    truth: list[Box] | None = field(default_factory=list)
    detections: list[Box] = field(default_factory=list)
    turned: bool = False

    @property
    def boxes(self) -> list[Box]:
        """Return labelled objects, then detections."""
        return [*(self.truth or []), *self.detections]


def read_pictures(
    json_path: Path,
    results_path: Path,
    image_dir: str,
    score: float,
    count: int,
    image_ids: Sequence[object] = (),
) -> list[LabelledPicture]:
    """Read the images to draw, with their boxes.

    Args:
        json_path: COCO json of the images and the ground truth.
        results_path: COCO result json: a list of image_id, category_id, bbox (x, y, width,
            height), score.
        image_dir: folder of the images; "" looks for them around the JSON.
            score: detections below it are left out.
            count: number of images, evenly spread over those that the results cover.
            image_ids: draw these images instead of `count`: their ids, as numbers or as text.

    Raises:
        UserError: a file is missing or not such a JSON, the two do not belong together, an image
            to be drawn is unknown or missing.
    """
    json_path = user_path(json_path).absolute()
    coco = read_coco(json_path)
    results = _read_results(user_path(results_path).absolute(), coco, json_path)
    boxes = _Boxes.of(coco, [entry for entry in results if entry["score"] >= score])
    evaluated = {entry["image_id"] for entry in results}
    pictures = _chosen(coco, json_path, count, image_ids, evaluated, boxes.errors())
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
    boxes.add_to(found, coco)
    return list(found.values())


def _file_of(finder: ImageFolder, name: str) -> Path:
    found = finder.find(name)
    return found.path if found else finder.path / name


def _folders(json_path: Path, info: Any, image_dir: str) -> list[Path]:
    """Return folders where images may be; first by the JSON: val2017 for instances_val2017.

    File names alone are not enough: training and evaluation data may use the same ones.
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
    """Raise a UserError where results have an id that the JSON does not have."""
    known = {entry["id"] for entry in coco[group]}
    odd = [entry[key] for entry in results if not _is_in(entry[key], known)]
    if odd:
        raise UserError(
            f"--results {path}: {len(odd)} of {len(results)} detections have another {key} than "
            f"the {group} of {json_path}, first {odd[0]!r:.60}; give the json that was "
            "evaluated"
        )


def _chosen(
    coco: dict[str, Any],
    json_path: Path,
    count: int,
    image_ids: Sequence[object],
    evaluated: set,
    errors: Mapping[Any, int],
) -> list[Any]:
    """Return the ids of the images to draw, in the requested order or those with most errors first.

    Images after the last one with a detection may not have been evaluated: they are not chosen.
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
    if coco["annotations"]:
        return sorted(ids, key=lambda id_: -errors.get(id_, 0))[:count]
    count = min(count, len(ids))
    return [ids[i * len(ids) // count] for i in range(count)]


def _require_files(pictures: list[LabelledPicture]) -> None:
    missing = [p for p in pictures if not is_image_file(p.path)]
    if missing:
        raise UserError(
            f"{missing[0].path}: no such image ({len(missing)} of the {len(pictures)} to draw are "
            "missing); set --image_dir to the folder that has them"
        )


@dataclass(frozen=True)
class _Boxes:
    """Hold the boxes of all images and what became of them.

    Attributes:
        truths: annotations with a box.
        detections: best first.
        matches: by the positions in these lists.
    """

    truths: list[dict[str, Any]]
    detections: list[dict[str, Any]]
    matches: Matches

    @classmethod
    def of(cls, coco: dict[str, Any], results: list[dict[str, Any]]) -> _Boxes:
        # Ids may be texts or of several types: the matching gets numbers.
        images = {entry["id"]: number for number, entry in enumerate(coco["images"])}
        categories = {entry["id"]: number for number, entry in enumerate(coco["categories"])}
        truths = [entry for entry in coco["annotations"] if _is_usable(entry, images, categories)]
        detections = sorted(results, key=lambda entry: -entry["score"])

        def numbered(entry: dict[str, Any]) -> dict[str, Any]:
            return {
                "image_id": images[entry["image_id"]],
                "category_id": categories[entry["category_id"]],
                "bbox": entry["bbox"],
                "area": entry["bbox"][2] * entry["bbox"][3],
                "iscrowd": int(entry.get("iscrowd") in (1, True)),
                "score": entry.get("score"),
            }

        pair = [[numbered(entry) for entry in entries] for entries in (truths, detections)]
        names = {number: str(id_) for id_, number in categories.items()}
        return cls(truths, detections, match(pair[0], pair[1], range(len(images)), names))

    def errors(self) -> Counter:
        """Count missed objects and false detections by the id of their image."""
        false = [self.detections[place] for place in self.matches.false]
        missed = [self.truths[place] for place in self.matches.missed]
        return Counter(entry["image_id"] for entry in [*false, *missed])

    def add_to(self, found: dict[Any, LabelledPicture], coco: dict[str, Any]) -> None:
        """Give the images in `found` their boxes; unlabelled where no image has an annotation."""
        index = {entry["id"]: number for number, entry in enumerate(coco["categories"])}
        names = {entry["id"]: str(entry["name"]) for entry in coco["categories"]}
        objects, detected = _outcomes(self.matches)

        def box(entry: dict[str, Any], outcome: Outcome, others: list, **more: Any) -> Box:
            x, y, width, height = (float(value) for value in entry["bbox"])
            what, place = outcome
            other = "" if place is None else names[others[place]["category_id"]]
            id_ = entry["category_id"]
            size = (width, height)
            return Box(index[id_], names[id_], (x, y), size, outcome=what, other=other, **more)

        for picture in found.values():
            picture.truth = [] if coco["annotations"] else None
        for number, entry in enumerate(self.truths):
            truth = found[entry["image_id"]].truth if entry["image_id"] in found else None
            if truth is not None:
                crowd = entry.get("iscrowd") in (1, True)
                truth.append(
                    box(entry, objects.get(number, UNCOUNTED), self.detections, crowd=crowd)
                )
        for number, entry in enumerate(self.detections):
            if entry["image_id"] in found:
                picture = found[entry["image_id"]]
                outcome = UNCOUNTED if picture.truth is None else detected.get(number, UNCOUNTED)
                score = float(entry["score"])
                picture.detections.append(box(entry, outcome, self.truths, score=score))


def _outcomes(matches: Matches) -> tuple[dict[int, Outcome], dict[int, Outcome]]:
    """Return the outcome of each object and of each detection that counts, by their positions."""
    taken = {truth: detection for detection, truth in matches.confused.items()}
    objects: dict[int, Outcome] = {n: (MISSED, taken.get(n)) for n in matches.missed}
    objects.update({n: (FOUND, None) for n in matches.found.values()})
    detections: dict[int, Outcome] = {n: (FALSE, matches.confused.get(n)) for n in matches.false}
    detections.update({n: (FOUND, None) for n in matches.found})
    return objects, detections


def _is_usable(entry: dict[str, Any], images: dict, categories: dict) -> bool:
    """Return whether an annotation has a known image and class, and a box with an area."""
    known = entry["image_id"] in images and _is_in(entry.get("category_id"), set(categories))
    box: Any = entry.get("bbox")
    return known and _box_numbers(box) and box[2] > 0 and box[3] > 0


def _finite(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _box_numbers(bbox: Any) -> bool:
    return isinstance(bbox, list) and len(bbox) == 4 and all(map(_finite, bbox))


def _is_in(value: Any, known: set) -> bool:
    """Return whether a JSON value, which may be a list or an object, is in `known`."""
    return isinstance(value, (int, float, str)) and value in known
