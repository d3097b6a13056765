"""What tools/detect.py does after its command line is read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from src.data.coco_json import read_coco
from src.errors import UserError
from src.evaluation.checkpoints import load_detector
from src.evaluation.command import write
from src.evaluation.detect import detect
from src.evaluation.image_files import ImageReader, find_images
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet, FasterRcnn_Infer
from src.model_utils.config import Config
from src.model_utils.device_adapter import use_device
from src.reporting.detection_pictures import contact_sheet, file_of, picture_of, save_picture
from src.reporting.detection_results import Box, LabelledPicture
from src.reporting.output import writable_folder, writing
from src.util import coco_results

RESULTS, IMAGES, SHEET = "detections.json", "images.json", "contact_sheet.png"
ON_SHEET = 20


def detect_files(config: Config) -> int:
    """Detect on `config.images`, write json files and pictures into `config.out`; the exit code.

    Raises:
        UserError: checkpoint, configuration or folder do not serve, or no image can be read.
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
    reader = ImageReader(paths)
    named = ((str(path), encoded) for path, encoded in reader)
    results: list[dict[str, Any]] = []
    found = detect(FasterRcnn_Infer(config, network), config, named)
    sheet: list[Any] = []
    for number, (boxes, labels) in enumerate(found):
        path, _ = reader.sound[number]
        entries = as_results(ids[path], boxes, labels, categories)
        results += entries
        if not config.no_pictures:
            picture = drawn(path, ids[path], entries, categories, config.score, out)
            sheet += [picture] if len(sheet) < ON_SHEET else []
    with writing(out, "--out"):
        if sheet:
            save_picture(contact_sheet(sheet), out / SHEET)
        write(out / RESULTS, results)
        write(out / IMAGES, images_json(reader.sound, ids, categories))
    _report(reader, results, config, out)
    return 0


def own_categories(config: Config) -> dict[int, tuple[Any, str]]:
    """Place in coco_classes to id and name; the id is the place."""
    return {place: (place, name) for place, name in enumerate(config.coco_classes) if place}


def json_categories(config: Config) -> dict[int, tuple[Any, str]]:
    """The same with the ids of `config.json`; classes that it does not have are left out.

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
    """Id of each image in a COCO json, by its file name.

    Raises:
        UserError: the json does not have an image.
    """
    known = {Path(str(e["file_name"])).name: e["id"] for e in read_coco(json_path)["images"]}
    unknown = [path for path in paths if path.name not in known]
    if unknown:
        raise UserError(
            f"--json {json_path}: has no image named {unknown[0].name} ({len(unknown)} of "
            f"{len(paths)} are missing); leave --json out, and images are numbered"
        )
    return {path: known[path.name] for path in paths}


def as_results(
    image_id: Any, boxes: np.ndarray, labels: np.ndarray, categories: dict[int, tuple[Any, str]]
) -> list[dict[str, Any]]:
    """Detections of one image in COCO's result format, of the classes in `categories`."""
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
    """A COCO json of the images, without annotations, to read the results with."""
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
) -> Image.Image:
    """Write the picture of one image with the detections that reach `score`."""
    colours = {id_: (number, name) for number, (id_, name) in enumerate(categories.values())}
    boxes = [
        Box(*colours[e["category_id"]], tuple(e["bbox"][:2]), tuple(e["bbox"][2:]), e["score"])
        for e in entries
        if e["score"] >= score
    ]
    picture = LabelledPicture(image_id, path, truth=None, detections=boxes)
    image = picture_of(picture, score)
    with writing(out, "--out"):
        save_picture(image, file_of(picture, out))
    return image


def _report(reader: ImageReader, results: list, config: Config, out: Path) -> None:
    shown = sum(entry["score"] >= config.score for entry in results)
    skipped = f", {len(reader.skipped)} left out" if reader.skipped else ""
    print(
        f"{len(reader.sound)} images{skipped}: {len(results)} detections, {shown} with a score of "
        f"{config.score:g} or more" + ("" if config.no_pictures else f"; pictures in {out}")
    )
