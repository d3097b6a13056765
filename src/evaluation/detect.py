"""Run the detector over images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from src.data.augmentation import preprocess_fn
from src.data.coco import NO_BOX
from src.data.image_check import decoded
from src.evaluation.metrics import MAX_DETECTIONS


def detect(
    infer: nn.Cell, config: Any, images: Iterable[tuple[str, bytes]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the detections of each image.

    The network takes `config.test_batch_size` images at a time. Where fewer are left, the last
    image is repeated to fill the batch, and the detections on the repetitions are dropped.

    Args:
        infer: returns boxes, labels and mask of a batch, as `FasterRcnn_Infer`.
        config: provides test_batch_size, test_max_per_img, and the keys for `preprocess_fn`.
        images: name and content of each image, a JPEG or PNG that is known to decode.

    Returns:
        For each image (n, 5) float32 x1, y1, x2, y2 in pixels of the original, score, best first,
        and (n,) int32 classes counted from 0 without the background; n is at most 100.
    """
    size = config.test_batch_size
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    for _, encoded in images:
        waiting.append(prepare(encoded, config))
        if len(waiting) == size:
            yield from _detect_batch(infer, config, waiting)
            waiting = []
    if waiting:
        filled = waiting + [waiting[-1]] * (size - len(waiting))
        yield from list(_detect_batch(infer, config, filled))[: len(waiting)]


def prepare(encoded: bytes, config: Any) -> tuple[np.ndarray, np.ndarray]:
    """Decode and scale an image for the network.

    Returns:
        (3, img_height, img_width) float32, and (4,) float32 height and width of the original and
        their scale factors.
    """
    image, shape, *_ = preprocess_fn(decoded(encoded), NO_BOX, False, config)
    return image, shape


def _detect_batch(
    infer: nn.Cell, config: Any, batch: list[tuple[np.ndarray, np.ndarray]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    images, metas = (np.stack(arrays) for arrays in zip(*batch))
    found = [output.asnumpy() for output in infer(Tensor(images), Tensor(metas))]
    most = min(config.test_max_per_img, MAX_DETECTIONS)
    for boxes, labels, mask, (height, width, *_) in zip(*found, metas):
        boxes, sound = within_image(boxes, height, width)
        yield top_detections(boxes, labels, mask.reshape(-1) & sound, most)


def within_image(boxes: np.ndarray, height: float, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Clip `boxes` (D, 5) to the image; return them and (D,) bool, True for those with an area.

    The network clips to its own input, which is larger than the image where that was padded.
    """
    clipped = boxes.copy()
    clipped[:, 0:4:2] = np.clip(boxes[:, 0:4:2], 0, width)
    clipped[:, 1:4:2] = np.clip(boxes[:, 1:4:2], 0, height)
    return clipped, (clipped[:, 2:4] > clipped[:, 0:2]).all(axis=1)


def top_detections(
    boxes: np.ndarray, labels: np.ndarray, mask: np.ndarray, max_per_img: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best detections of one image, best first.

    Args:
        boxes: (D, 5) x1, y1, x2, y2, score.
        labels: (D,) or (D, 1) classes counted from 0.
        mask: (D,) or (D, 1) bool, True for rows that are detections.
        max_per_img: the largest number of detections, of all classes together.

    Returns:
        (n, 5) and (n,); of equal scores the earlier row comes first.
    """
    kept = np.flatnonzero(np.reshape(mask, -1))
    order = np.argsort(-boxes[kept, 4], kind="stable")[:max_per_img]
    return boxes[kept[order]], np.reshape(labels, -1)[kept[order]]
