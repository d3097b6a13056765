"""Run tools/detect.py after its command line is read."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image

from src.commands.evaluate import write
from src.commands.load_detector import load_detector
from src.data.coco import name_parts, read_coco, size_of
from src.data.coco_boxes import as_shown, some
from src.errors import UserError, writable_folder, writing
from src.evaluation.detect import detect
from src.evaluation.image_files import ImageReader, find_images
from src.evaluation.metrics import coco_results
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet, FasterRcnn_Infer
from src.model_utils.config import Config, setting
from src.model_utils.device_adapter import use_device
from src.printing import print
from src.reporting.detections import Box, LabelledPicture
from src.reporting.pictures import SHEET, PictureNames, contact_sheet, picture_of, save_picture

RESULTS, IMAGES = "detections.json", "images.json"
ON_SHEET = 20

Entry = tuple[tuple[str, ...], Any]  # folders and name of an image in a JSON, and its id


def detect_files(config: Config) -> int:
    """Detect on `config.images`, write JSON files and pictures to `config.out`; return exit code.

    Raises:
        UserError: checkpoint, configuration or folder is unusable, or no image can be read.
    """
    paths = find_images(config.images, "--images")
    ids = (
        json_ids(config.json, paths) if config.json else dict(zip(paths, range(1, len(paths) + 1)))
    )
    categories = json_categories(config) if config.json else own_categories(config)
    out = writable_folder(config.out, "--out")
    use_device(config.device_target, config.device_id, config.threads)
    network = Faster_Rcnn_Resnet(config)
    print(load_detector(network, config, config.checkpoint, config.frozen_from), flush=True)
    reader = ImageReader(paths, setting(config, "max_image_pixels"))
    sizes = json_sizes(config.json) if config.json else {}
    named = ((str(path), encoded) for path, encoded in reader)
    results: list[dict[str, Any]] = []
    listed: list[tuple[Path, tuple[int, int]]] = []
    found = detect(FasterRcnn_Infer(config, network), config, named)
    sheet: list[Any] = []
    names = PictureNames()
    for number, (boxes, labels) in enumerate(found):
        path, header = reader.sound[number]
        turned = header.drawn_as_shown(sizes.get(ids[path]))
        if turned:
            boxes = np.concatenate([as_shown(boxes[:, :4], header), boxes[:, 4:]], axis=1)
        entries = as_results(ids[path], boxes, labels, categories)
        results += entries
        listed.append((path, header.shown if turned else header.size))
        if not config.no_pictures:
            picture = drawn(path, ids[path], entries, categories, config.score, out, names, turned)
            sheet += [picture] if len(sheet) < ON_SHEET else []
    with writing(out, "--out"):
        if sheet:
            save_picture(contact_sheet(sheet), out / SHEET)
        write(out / RESULTS, results)
        write(out / IMAGES, images_json(listed, ids, categories))
    _report(reader, results, config, out)
    return 0


def own_categories(config: Config) -> dict[int, tuple[Any, str]]:
    """Return id and name for each position in coco_classes; the id is the position."""
    return {place: (place, name) for place, name in enumerate(config.coco_classes) if place}


def json_categories(config: Config) -> dict[int, tuple[Any, str]]:
    """Return id and name as `config.json` has them; classes that it does not have are left out.

    Raises:
        UserError: it has none of them.
    """
    ids = {entry["name"]: entry["id"] for entry in read_coco(config.json)["categories"]}
    own = own_categories(config)
    found = {place: (ids[name], name) for place, (_, name) in own.items() if name in ids}
    if not found:
        raise UserError(
            f"--json {config.json}: none of its categories is in coco_classes; give the "
            "--config_path that the detector was trained with"
        )
    return found


def json_ids(json_path: Path, paths: list[Path]) -> dict[Path, Any]:
    """Return the id of each image in a COCO JSON: of the entry with the longest common path end.

    Raises:
        UserError: the JSON lacks an image, has several that it may be, or has one for several of
            `paths`.
    """
    named: dict[str, list[Entry]] = {}
    for entry in read_coco(json_path)["images"]:
        parts = name_parts(entry["file_name"])
        named.setdefault(parts[-1] if parts else "", []).append((parts, entry["id"]))
    _require_listed(named, json_path, paths)
    owners: dict[Any, Path] = {}
    elsewhere = []
    for path in paths:
        (parts, id_), *others = best = _closest(path, named[path.name])
        if others:
            entries = [f"{'/'.join(parts)} (id {id_})" for parts, id_ in best]
            raise UserError(
                f"--json {json_path}: {path} may be {some(entries)}; give it under a folder that "
                "tells them apart, or leave --json out, and images are numbered"
            )
        if id_ in owners:
            raise UserError(
                f"--json {json_path}: {owners[id_]} and {path} may both be {'/'.join(parts)} "
                f"(id {id_}); give one of them, or leave --json out, and images are numbered"
            )
        owners[id_] = path
        if not _ends_with(path, parts):
            elsewhere.append(f"{path} as {'/'.join(parts)}")
    if elsewhere:
        print(
            f"note: {len(elsewhere)} images are in other folders than the json says, taken by the "
            f"end of their path: {some(elsewhere, 1)}",
            file=sys.stderr,
            flush=True,
        )
    return {path: id_ for id_, path in owners.items()}


def _require_listed(named: Mapping[str, object], json_path: Path, paths: list[Path]) -> None:
    """Raise a UserError where the JSON has no image with the name of one of `paths`."""
    unknown = [path for path in paths if path.name not in named]
    if not unknown:
        return
    wanted = _as_spelt(unknown[0].name)
    alike = next((name for name in named if _as_spelt(name) == wanted), None)
    hint = f", only {alike!r}: rename one of the two," if alike else ""
    raise UserError(
        f"--json {json_path}: has no image named {unknown[0].name}{hint} ({len(unknown)} of "
        f"{len(paths)} are missing); leave --json out, and images are numbered"
    )


def _as_spelt(name: str) -> str:
    """Normalize a name from what programs change in it: case, %20, the form of its accents."""
    return unicodedata.normalize("NFC", unquote(name)).casefold()


def _closest(path: Path, entries: list[Entry]) -> list[Entry]:
    """Return those of `entries` that share the longest end with `path`, whole file_name first."""
    if len(entries) == 1:
        return entries
    ends = [(_common_end(path, parts), _ends_with(path, parts)) for parts, _ in entries]
    return [entry for entry, end in zip(entries, ends) if end == max(ends)]


def _ends_with(path: Path, parts: tuple[str, ...]) -> bool:
    return _common_end(path, parts) == len(parts)


def _common_end(path: Path, parts: tuple[str, ...]) -> int:
    """Count the names that the ends of `path` and `parts` share; a link also is its target."""
    places = (Path(os.path.normpath(path.absolute())), path.resolve())
    return max(len(os.path.commonprefix([place.parts[::-1], parts[::-1]])) for place in places)


def json_sizes(json_path: Path) -> dict[Any, tuple[int, int] | None]:
    """Return width and height of each image by id, as a COCO JSON has them."""
    return {entry["id"]: size_of(entry) for entry in read_coco(json_path)["images"]}


def as_results(
    image_id: Any, boxes: np.ndarray, labels: np.ndarray, categories: dict[int, tuple[Any, str]]
) -> list[dict[str, Any]]:
    """Return detections of one image in COCO's result format, of the classes in `categories`."""
    kept = np.isin(labels + 1, list(categories))
    places = list(range(1, max(categories) + 1))
    return [
        {**entry, "category_id": categories[entry["category_id"]][0]}
        for entry in coco_results(image_id, boxes[kept], labels[kept], places)
    ]


def images_json(
    sound: Iterable[tuple[Path, tuple[int, int]]],
    ids: dict[Path, Any],
    categories: dict[int, tuple[Any, str]],
) -> dict[str, Any]:
    """Return a COCO JSON of the images, without annotations, for reading the results."""
    return {
        "images": [
            {"id": ids[path], "file_name": str(path.absolute()), "width": width, "height": height}
            for path, (width, height) in sound
        ],
        "annotations": [],
        "categories": [{"id": id_, "name": name} for id_, name in categories.values()],
    }


def drawn(
    path: Path,
    image_id: Any,
    entries: list[dict[str, Any]],
    categories: dict[int, tuple[Any, str]],
    score: float,
    out: Path,
    names: PictureNames,
    turned: bool = False,
) -> Image.Image:
    """Write the picture of one image with the detections that reach `score`.

    Args:
        turned: the detections are on the image as rotated by EXIF.
    """
    colours = {id_: (number, name) for number, (id_, name) in enumerate(categories.values())}
    boxes = [
        Box(*colours[e["category_id"]], tuple(e["bbox"][:2]), tuple(e["bbox"][2:]), e["score"])
        for e in entries
        if e["score"] >= score
    ]
    picture = LabelledPicture(image_id, path, truth=None, detections=boxes, turned=turned)
    image = picture_of(picture, score)
    with writing(out, "--out"):
        save_picture(image, out / names.name_of(picture))
    return image


def _report(reader: ImageReader, results: list, config: Config, out: Path) -> None:
    shown = sum(entry["score"] >= config.score for entry in results)
    skipped = f", {len(reader.skipped)} left out" if reader.skipped else ""
    print(
        f"{len(reader.sound)} images{skipped}: {len(results)} detections, {shown} with a score of "
        f"{config.score:g} or more" + ("" if config.no_pictures else f"; pictures in {out}")
    )
