"""Whether an exported detector finds what the detector finds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from src.evaluation.detect import prepare

# Both compute in float32, in another order of the sums; coordinates reach 2000 pixels.
LARGEST_PIXELS = 0.1
LARGEST_SCORE = 1e-3
# Rounding may also decide a tie: an overlap or a score at its threshold, or the last place. Such a
# box is there on one side only.
LARGEST_SHARE = 0.01

Detections = tuple[np.ndarray, np.ndarray]


@dataclass
class Agreement:
    """How much two detectors agree.

    Attributes:
        images: compared.
        boxes: found by the detector on them.
        pixels: largest difference of a coordinate, in pixels of the original.
        score: largest difference of a score.
        alone: boxes that only one of the two has.
    """

    images: int = 0
    boxes: int = 0
    pixels: float = 0.0
    score: float = 0.0
    alone: int = 0

    def __bool__(self) -> bool:
        return self.alone <= LARGEST_SHARE * max(self.boxes, 1)

    def __str__(self) -> str:
        return (
            f"{self.boxes} boxes on {self.images} images: largest difference {self.pixels:.1e} "
            f"pixels, {self.score:.1e} of a score; {self.alone} boxes on one side only"
        )


def agreement(one: Iterable[Detections], other: Iterable[Detections]) -> Agreement:
    """Compare detections (n, 5) and labels (n,) of the same images.

    A box of `one` and one of `other` are the same where label, coordinates and score agree within
    LARGEST_PIXELS and LARGEST_SCORE.
    """
    total = Agreement()
    for (boxes, labels), (others, other_labels) in zip(one, other):
        total.images += 1
        total.boxes += len(boxes)
        free = np.ones(len(others), bool)
        for box, label in zip(boxes, labels):
            pixels = np.abs(others[:, :4] - box[:4]).max(axis=1)
            score = np.abs(others[:, 4] - box[4])
            same = free & (other_labels == label)
            same &= (pixels <= LARGEST_PIXELS) & (score <= LARGEST_SCORE)
            if not same.any():
                total.alone += 1
                continue
            place = int(np.argmin(np.where(same, pixels, np.inf)))
            free[place] = False
            total.pixels = max(total.pixels, float(pixels[place]))
            total.score = max(total.score, float(score[place]))
        total.alone += int(free.sum())
    return total


def onnx_detections(
    session: onnxruntime.InferenceSession, config: Any, images: Iterable[tuple[str, bytes]]
) -> Iterator[Detections]:
    """As `detect`, of an exported ONNX model."""
    for _, encoded in images:
        image, shape = prepare(encoded, config)
        inputs = {"image": image[None], "image_shape": shape[None]}
        boxes, scores, labels = session.run(None, inputs)
        yield np.concatenate([boxes, scores[:, None]], axis=1), labels
