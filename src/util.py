"""Upstream's names for results in COCO's format and for metrics.

They are for scripts written for upstream's example: its names, arguments and results, computed by
`evaluation.metrics`. Where upstream returned wrong values, the docstring says so.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from pycocotools.coco import COCO

from src.errors import UserError
from src.evaluation.matching import class_counts
from src.evaluation.metrics import LIMITS, box_figures, coco_results
from src.files import parsed_json, write_whole


def xyxy2xywh(bbox: np.ndarray | Sequence[float]) -> list[float]:
    """Return x, y, width, height of a box x1, y1, x2, y2 (further values are ignored).

    The width is x2 - x1, as in the labels that the detector learns from; upstream added a pixel.
    """
    x1, y1, x2, y2 = (float(value) for value in bbox[:4])
    return [x1, y1, x2 - x1, y2 - y1]


def bbox2result_1image(
    bboxes: np.ndarray, labels: np.ndarray, num_classes: int
) -> list[np.ndarray]:
    """Return the detections of one image, class by class.

    Args:
        bboxes: (n, 5) x1, y1, x2, y2, score.
        labels: (n,) or (n, 1) classes counted from 0, without the background.
        num_classes: number of classes, with the background.

    Returns:
        num_classes - 1 arrays (m, 5), in the order of the classes.
    """
    rows = np.asarray(bboxes, np.float32).reshape(-1, 5)
    classes = np.reshape(np.asarray(labels), -1)
    return [rows[classes == number] for number in range(num_classes - 1)]


def det2json(dataset: COCO, results: Sequence[Sequence[np.ndarray]]) -> list[dict[str, Any]]:
    """Return detections of images as entries of COCO's result format.

    Args:
        dataset: the annotations; its categories are the classes, in the file's order.
        results: the results of `bbox2result_1image` for each of the first images of the file, in
            order.

    Raises:
        UserError: there are more images or classes than in the file.
    """
    categories = dataset.getCatIds()
    entries = []
    for image_id, by_class in zip(_ids_of(dataset, results), results):
        for number, boxes in enumerate(by_class):
            if len(boxes) and number >= len(categories):
                raise UserError(
                    f"det2json: a box of class {number + 1}, and the annotations have "
                    f"{len(categories)} categories; give those that the detector was trained with"
                )
            labels = np.full(len(boxes), number)
            entries += coco_results(image_id, boxes, labels, categories)
    return entries


def proposal2json(dataset: COCO, results: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Return proposals (n, 5) of the file's first images as result entries of category 1.

    Upstream called a method that the annotations do not have.

    Raises:
        UserError: there are more images than in the file.
    """
    pairs = zip(_ids_of(dataset, results), results)
    return [
        e for id_, rows in pairs for e in coco_results(id_, rows, np.zeros(len(rows), int), [1])
    ]


def segm2json(dataset: COCO, results: Sequence[Any]) -> NoReturn:
    """Refuse: Faster R-CNN finds boxes, so there are no masks to convert.

    Raises:
        UserError: always.
    """
    raise UserError("segm2json: Faster R-CNN finds boxes and no masks; use det2json")


def results2json(dataset: COCO, results: Sequence[Any], out_file: str) -> dict[str, str]:
    """Write results of images to a file, as JSON in COCO's result format.

    Args:
        dataset: the annotations.
        results: lists of `bbox2result_1image`, or arrays of proposals, one for each image.
        out_file: the beginning of the file's name; ".bbox.json" or ".proposal.json" is appended.

    Returns:
        The file's name under "bbox" and "proposal", or under "proposal" only.

    Raises:
        UserError: the results have masks; or see `det2json`.
        TypeError: the results are of another type.
    """
    first = results[0] if len(results) else []
    if isinstance(first, list):
        path = f"{out_file}.bbox.json"
        write_whole(Path(path), json.dumps(det2json(dataset, results)))
        return {"bbox": path, "proposal": path}
    if isinstance(first, tuple):
        segm2json(dataset, results)
    if not isinstance(first, np.ndarray):
        raise TypeError(f"results2json: a list or an array for each image, not {type(first)}")
    path = f"{out_file}.proposal.json"
    write_whole(Path(path), json.dumps(proposal2json(dataset, results)))
    return {"proposal": path}


def coco_eval_method(
    config: Any,
    result_files: Mapping[str, str],
    result_types: Sequence[str],
    coco: COCO | str,
    max_dets: Sequence[int] = (100, 300, 1000),
    single_result: bool = False,
    plot_detect_result: bool = False,
) -> dict[str, float] | float:
    """Evaluate result files against annotations.

    Args:
        config: not read.
        result_files: the result of `results2json`.
        result_types: "bbox", or "proposal" (only boxes, without their class).
        coco: the annotations, or the path of their json.
        max_dets: numbers of proposals per image for the recall; AP needs 100 among them.
        single_result: count only images in which something was found.
        plot_detect_result: also call `calculate_pr_rc_f1`, and return its result.

    Returns:
        COCO's twelve metrics of the last type, under "Precision/mAP", "Precision/mAP@.50IOU",
        "Recall/AR@100", ...; -1 where there is nothing to measure. For proposals the recall is
        named after `max_dets`; upstream called that at 1000 "AR@100".

    Raises:
        UserError: a type is unknown, or a file has no results for these images.
    """
    truth = coco if isinstance(coco, COCO) else COCO(coco)
    figures: dict[str, float] | float = {}
    for kind in result_types:
        if kind not in ("bbox", "proposal"):
            raise UserError(
                f"result_types: {kind!r}, expected 'bbox' or 'proposal' (no masks here)"
            )
        entries = _entries_of(Path(result_files[kind]), truth)
        images = truth.getImgIds()
        if single_result:
            found_in = {entry["image_id"] for entry in entries}
            images = [image for image in images if image in found_in]
        figures = _figures(truth, entries, images, None if kind == "bbox" else max_dets)
        if plot_detect_result:
            found = COCO()
            found.dataset = {**truth.dataset, "annotations": entries}
            figures = calculate_pr_rc_f1(config, truth, found, images, "bbox")
    return figures


def calculate_pr_rc_f1(
    config: Any, coco: COCO, coco_dets: COCO, tgt_ids: Sequence[int], iou_type: str
) -> float:
    """Write eval_result/statistics.csv in the current folder: the metrics, and counts per class.

    The counts are for all detections, matched at an IoU of 0.5; after them come the class's highest
    F1 and the score threshold that reaches it. Upstream deleted the folder first, named AR@1, AR@10
    and AR@100 after overlaps, and drew images, which `tools/show_detections.py` does here.

    Args:
        config: not read.
        coco: the annotations.
        coco_dets: the detections, as returned by `coco.loadRes`.
        tgt_ids: ids of the images to evaluate.
        iou_type: "bbox".

    Returns:
        The AP.
    """
    if iou_type != "bbox":
        raise UserError(f"iou_type: {iou_type!r}, expected 'bbox': Faster R-CNN finds no masks")
    entries = coco_dets.dataset["annotations"]
    figures = _figures(coco, entries, tgt_ids)
    folder = Path("eval_result")
    folder.mkdir(exist_ok=True)
    table = folder / "statistics.csv"
    write_list_to_csv(table, figures)
    write_list_to_csv(table, [round(value, 3) for value in figures.values()], append=True)
    write_list_to_csv(table, [], append=True)
    names = ["class_name", "tp_num", "gt_num", "dt_num", "precision", "recall", "best_f1", "score"]
    write_list_to_csv(table, names, append=True)
    for row in class_counts(_truths(coco, tgt_ids), entries, tgt_ids, _classes(coco)):
        write_list_to_csv(table, row, append=True)
    return figures["Precision/mAP"]


def write_list_to_csv(
    file_path: str | Path, data_to_write: Iterable[Any], append: bool = False
) -> None:
    """Write one row of a CSV file; `append` keeps the existing rows."""
    with Path(file_path).open("a" if append else "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(data_to_write)


def _ids_of(dataset: COCO, results: Sequence[Any]) -> list[Any]:
    ids = dataset.getImgIds()
    if len(results) > len(ids):
        raise UserError(f"results of {len(results)} images, and the annotations have {len(ids)}")
    return ids


def _entries_of(path: Path, coco: COCO) -> list[dict[str, Any]]:
    """Return the entries of a result file, after checking that they are for images of `coco`."""
    try:
        entries = parsed_json(path.read_text(encoding="utf-8"))
        unknown = [e["image_id"] for e in entries if e["image_id"] not in coco.imgs]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: no file of results in COCO's format ({error!r})") from error
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} boxes of images that the annotations do not have, first "
            f"image_id {unknown[0]!r}; give the annotations that were detected on"
        )
    return entries


def _classes(coco: COCO) -> dict[int, str]:
    return {entry["id"]: entry["name"] for entry in coco.dataset["categories"]}


def _truths(coco: COCO, images: Sequence[int]) -> list[dict[str, Any]]:
    """Return the annotated boxes of images; pycocotools fails on one without area or iscrowd."""
    found = coco.loadAnns(coco.getAnnIds(imgIds=list(images))) if images else []
    return [{"iscrowd": 0, "area": e["bbox"][2] * e["bbox"][3], **e} for e in found]


def _figures(
    coco: COCO,
    entries: list[dict[str, Any]],
    images: Sequence[int],
    proposals: Sequence[int] | None = None,
) -> dict[str, float]:
    """Return the twelve metrics by upstream's names; for proposals at these numbers per image."""
    limits = proposals or LIMITS
    truths, classes = _truths(coco, images), _classes(coco)
    figures, *_ = box_figures(truths, entries, list(images), classes, limits, proposals is None)
    sizes = ("small", "medium", "large")
    names = ["Precision/mAP", "Precision/mAP@.50IOU", "Precision/mAP@.75IOU"]
    names += [f"Precision/mAP ({size})" for size in sizes]
    names += [f"Recall/AR@{limit}" for limit in limits]
    names += [f"Recall/AR@{limits[-1]} ({size})" for size in sizes]
    return {name: -1.0 if v is None else v for name, v in zip(names, figures.values())}
