"""From the detector's output to results in COCO's format."""

from __future__ import annotations

from typing import Any

import numpy as np


def top_detections(
    boxes: np.ndarray, labels: np.ndarray, mask: np.ndarray, max_per_img: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best detections of one image, best first.

    Args:
        boxes: (D, 5) x1, y1, x2, y2, score.
        labels: (D,) or (D, 1) classes counted from 0.
        mask: (D,) or (D, 1) bool of the rows that are detections.
        max_per_img: how many to give at most, of all classes together.

    Returns:
        (n, 5) and (n,); of equal scores the earlier row comes first.
    """
    kept = np.flatnonzero(np.reshape(mask, -1))
    order = np.argsort(-boxes[kept, 4], kind="stable")[:max_per_img]
    return boxes[kept[order]], np.reshape(labels, -1)[kept[order]]


def coco_results(
    image_id: int, bboxes: np.ndarray, labels: np.ndarray, category_ids: list[int]
) -> list[dict[str, Any]]:
    """Detections of one image as entries that `pycocotools.coco.COCO.loadRes` takes.

    Args:
        image_id: the image's id in the annotation file.
        bboxes: (n, 5) x1, y1, x2, y2 in pixels of the original, score.
        labels: (n,) classes counted from 0.
        category_ids: id in the annotation file of each class without the background.
    """
    return [
        {
            "image_id": int(image_id),
            "category_id": int(category_ids[label]),
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "score": float(score),
        }
        for (x1, y1, x2, y2, score), label in zip(bboxes, labels)
    ]
