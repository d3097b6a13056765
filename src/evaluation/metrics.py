"""COCO's twelve metrics for boxes, as pycocotools computes them.

They are defined at https://cocodataset.org/#detection-eval.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# In the order of COCOeval.stats.
FIGURES = (
    "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl",
)  # fmt: skip
LIMITS = (1, 10, 100)  # COCO's limits of detections per image
MAX_DETECTIONS = LIMITS[-1]


def box_figures(
    truths: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    images: list[int],
    classes: dict[int, str],
    limits: Sequence[int] = LIMITS,
    by_class: bool = True,
) -> tuple[dict[str, float | None], dict[str, float], dict[str, float]]:
    """Compute the metrics of detections against the annotated boxes.

    Args:
        truths: annotations of COCO's format: image_id, category_id, bbox (x, y, width, height in
            pixels), area, iscrowd. This function assigns their ids.
        detections: of COCO's result format: image_id, category_id, bbox, score.
        images: the ids of all evaluated images, also of those without a box.
        classes: category id -> name; detections of other categories do not count.
        limits: three limits of detections per image, those of AR1, AR10 and AR100.
        by_class: False compares boxes regardless of their classes, as for proposals.

    Returns:
        The twelve metrics of `FIGURES`, None where there is nothing to measure (no object of that
        size; for AP, no 100 among `limits`); the AP of each class that has an object, by name; and
        its AP50.
    """
    # pycocotools prints its progress, which would end up between the lines of a log.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            coco_index(truths, images, classes),
            coco_index(with_area(detections), images, classes),
            "bbox",
        )
        evaluation.params.maxDets = list(limits)
        evaluation.params.useCats = int(by_class)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = dict(zip(FIGURES, map(_figure, evaluation.stats)))
    if not by_class:
        return figures, {}, {}
    (half,) = np.flatnonzero(np.isclose(evaluation.params.iouThrs, 0.5))
    return figures, _per_class(evaluation, classes), _per_class(evaluation, classes, half)


def coco_index(entries: list[dict[str, Any]], images: list[int], classes: dict[int, str]) -> COCO:
    """Return an index of boxes. COCO.loadRes is not used: it refuses an empty list of results.

    The ids count from 1, since pycocotools takes the id 0 of a matched box for "not matched".
    """
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in images],
        "categories": [{"id": id_, "name": name} for id_, name in classes.items()],
        "annotations": [{**entry, "id": number} for number, entry in enumerate(entries, 1)],
    }
    coco.createIndex()
    return coco


def with_area(detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return detections with the area of their box, as pycocotools expects them."""
    return [{**d, "area": d["bbox"][2] * d["bbox"][3], "iscrowd": 0} for d in detections]


def _figure(value: float) -> float | None:
    """Return a metric of pycocotools; its -1, which means "nothing to measure", becomes None."""
    return float(value) if value > -1 else None


def _per_class(
    evaluation: COCOeval, classes: dict[int, str], threshold: int | None = None
) -> dict[str, float]:
    """Return the AP by name of each class with an object; all sizes, 100 detections per image.

    Args:
        threshold: position of the one overlap threshold that counts; None for all of them.
    """
    # Axes: overlap threshold, recall threshold, category, size of the object, detections.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    precision = precision if threshold is None else precision[threshold : threshold + 1]
    result = {}
    for number, id_ in enumerate(evaluation.params.catIds):
        values = precision[:, :, number]
        if (values > -1).any():
            result[classes[id_]] = float(np.mean(values[values > -1]))
    return result


WHAT = {
    "AP": "precision, mean over the overlaps 0.50 to 0.95",
    "AP50": "precision at an overlap of 0.50",
    "AP75": "precision at an overlap of 0.75",
    "APs": "of objects smaller than 32 x 32 pixels",
    "APm": "of objects of 32 x 32 to 96 x 96",
    "APl": "of larger objects",
    "AR1": "recall with the best detection of an image alone",
    "AR10": "recall with 10 detections of an image",
    "AR100": "recall with 100 detections of an image",
    "ARs": "recall of objects smaller than 32 x 32",
    "ARm": "recall of objects of 32 x 32 to 96 x 96",
    "ARl": "recall of larger objects",
}


def figures_line(record: dict[str, Any]) -> str:
    """Return a record of metrics.jsonl as one line, "-" where there is nothing to measure."""
    figures = " ".join(f"{name}: {_number(record[name])}" for name in FIGURES)
    return f"iteration: {record['iteration']} {figures}{rate(record)}"


def figures_table(figures: dict[str, Any]) -> list[str]:
    """Return the twelve metrics as lines."""
    return [f"{name:11}{_number(figures[name]):>7}   {WHAT[name]}" for name in FIGURES]


def rate(record: dict[str, Any]) -> str:
    """Return " (60 images, 4.9 images/s)" for an evaluation."""
    speed = record["images"] / max(record["seconds"], 1e-9)
    return f" ({record['images']} images, {speed:.1f} images/s)"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def coco_results(
    image_id: Any, bboxes: np.ndarray, labels: np.ndarray, category_ids: list[int]
) -> list[dict[str, Any]]:
    """Return the detections of one image as entries that `pycocotools.coco.COCO.loadRes` takes.

    Args:
        image_id: the image's id in the annotation file, a number or text.
        bboxes: (n, 5) x1, y1, x2, y2 in pixels of the original, score.
        labels: (n,) classes counted from 0.
        category_ids: id in the annotation file of each class without the background.
    """
    return [
        {
            "image_id": image_id,
            "category_id": int(category_ids[label]),
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "score": float(score),
        }
        for (x1, y1, x2, y2, score), label in zip(bboxes, labels)
    ]
