"""Non-maximum suppression (NMS) as compiled CPU kernels: of all classes of a batch, or of one list.

Greedy NMS within each class: Girshick et al., "Rich feature hierarchies", 2014, section 2.2. The
result equals that of the library's NMSWithMask for each class, row for row. The library sorts boxes
by a bitonic network (Batcher, "Sorting networks and their applications", 1968), whose order of
equal scores decides which of two boxes survives, so the same network is used here.
"""

from __future__ import annotations

from typing import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.FasterRcnn.cpu.compiled import (
    compiled,
    graph_operator,
    kernels_usable,
    run_parallel,
    split_range,
    thread_count,
)

CLASSES_PER_JOB = 4


class ClassSuppression(nn.Cell):
    """Apply NMS within each class to the boxes that score above a threshold.

    Args:
        iou_threshold: a box with a higher IoU with a better box of its class is suppressed.
        score_threshold: boxes that score at most this get the score 0.
    """

    def __init__(self, iou_threshold: float, score_threshold: float):
        super().__init__()
        self.score_threshold = float(score_threshold)
        self.compiled = kernels_usable()
        if self.compiled:
            self.suppress = suppression_operator(iou_threshold, score_threshold, thread_count())
        else:
            self.nms = ops.NMSWithMask(iou_threshold)

    def construct(self, boxes: Tensor, scores: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Apply NMS to a batch.

        Args:
            boxes: (B, C, P, 4) float32 x1, y1, x2, y2 of C classes; a width is x2 - x1.
            scores: (B, C, P) float32.
            used: (B, 1, P) bool, True for boxes that count.

        Returns:
            (B, C * P, 5) float32 boxes with scores, each class best first, and (B, C * P, 1) bool,
            True for survivors.
        """
        if self.compiled:
            return self.suppress(boxes, scores, used)
        return self.suppress_by_operators(boxes, scores, used)

    def suppress_by_operators(
        self, boxes: Tensor, scores: Tensor, used: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Apply NMS with one library operator for each class of each image."""
        batch, classes, count = ops.shape(scores)
        counts = ops.cast(ops.logical_and(scores > self.score_threshold, used), ms.float32)
        candidates = ops.concat((boxes, ops.expand_dims(scores * counts, -1)), -1)
        all_found, all_kept = (), ()  # type: tuple, tuple
        for one_class in ops.Unstack()(ops.reshape(candidates, (batch * classes, count, 5))):
            survivors, _, mask = self.nms(one_class)
            all_found += (survivors,)
            all_kept += (mask,)
        found = ops.reshape(ops.stack(all_found), (batch, classes * count, 5))
        kept = ops.reshape(ops.stack(all_kept), (batch, classes * count, 1))
        return found, ops.logical_and(kept, found[:, :, 4:] > self.score_threshold)


def suppression_operator(iou_threshold: float, score_threshold: float, threads: int) -> ops.Custom:
    """Make `suppress_classes` an operator of a CPU graph, of boxes, scores and `used`."""

    def suppress(boxes, scores, used):
        return suppress_classes(boxes, scores, used, iou_threshold, score_threshold, threads)

    def shapes(boxes, scores, used):
        rows = scores[1] * scores[2]
        return [scores[0], rows, 5], [scores[0], rows, 1]

    return graph_operator(
        suppress, shapes, [ms.float32, ms.float32, ms.bool_], [ms.float32, ms.bool_]
    )


def sorting_suppression(iou_threshold: float) -> Callable:
    """Make an operator that sorts (N, 5) boxes with scores, best first, and applies NMS.

    Returns:
        An operator that gives the sorted boxes (N, 5) and (N,) bool, True for survivors: where
        `kernels_usable` a compiled one, else the library's NMSWithMask without its second result.
        The results are equal.
    """
    if kernels_usable():
        return sorting_operator(iou_threshold)
    nms = ops.NMSWithMask(iou_threshold)

    def suppress(candidates):
        found, _, kept = nms(candidates)
        return found, kept

    return suppress


def sorting_operator(iou_threshold: float) -> ops.Custom:
    """Make `sort_and_suppress` an operator of a CPU graph, of boxes with scores (N, 5)."""
    thresholds = np.array([iou_threshold, -np.inf], np.float32)

    def suppress(candidates):
        found, kept = np.empty_like(candidates), np.empty(len(candidates), np.bool_)
        sort_and_suppress(candidates, thresholds, found, kept)
        return found, kept

    return graph_operator(
        suppress,
        lambda candidates: (candidates, [candidates[0]]),
        [ms.float32],
        [ms.float32, ms.bool_],
    )


def suppress_classes(
    boxes: np.ndarray,
    scores: np.ndarray,
    used: np.ndarray,
    iou_threshold: float,
    score_threshold: float,
    threads: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Sort each class of each image by score and apply NMS to it.

    Arguments and results are those of `ClassSuppression`; `threads` is the largest number of
    threads.
    """
    batch, classes, count = scores.shape
    found = np.empty((batch * classes, count, 5), np.float32)
    kept = np.empty((batch * classes, count), np.bool_)
    thresholds = np.array([iou_threshold, score_threshold], np.float32)
    jobs = [
        (boxes, scores, used, thresholds, start, end, found, kept)
        for start, end in split_range(batch * classes, CLASSES_PER_JOB)
    ]
    run_parallel(_suppress_range, jobs, threads)
    return found.reshape(batch, classes * count, 5), kept.reshape(batch, classes * count, 1)


@compiled
def _suppress_range(boxes, scores, used, thresholds, start, end, found, kept):
    """Sort classes start to end, counted through all images, into `found` and fill `kept`."""
    _, classes, count = scores.shape
    none = np.float32(0)
    for row in range(start, end):
        image, label = row // classes, row % classes
        keys = np.empty(count, np.float32)
        for i in range(count):
            score = scores[image, label, i]
            keys[i] = score if used[image, 0, i] and score > thresholds[1] else none
        order = descending_order(keys)
        for i in range(count):
            found[row, i, :4] = boxes[image, label, order[i]]
            found[row, i, 4] = keys[order[i]]
        suppress_sorted(found[row], thresholds, kept[row])


@compiled
def sort_and_suppress(candidates, thresholds, found, kept) -> None:
    """Fill `found` (N, 5) with the sorted `candidates` (N, 5), and `kept` (N,)."""
    order = descending_order(candidates[:, 4])
    for i in range(len(order)):
        found[i] = candidates[order[i]]
    suppress_sorted(found, thresholds, kept)


@compiled
def suppress_sorted(candidates, thresholds, kept) -> None:
    """Fill `kept` (N,) for boxes with scores (N, 5), best first; `thresholds` are IoU and score."""
    count = 0
    while count < len(candidates) and candidates[count, 4] > thresholds[1]:
        count += 1
    kept[:count] = True
    kept[count:] = False
    # Contiguous columns let the inner loop run on several boxes at once.
    x1, y1 = candidates[:count, 0].copy(), candidates[:count, 1].copy()
    x2, y2 = candidates[:count, 2].copy(), candidates[:count, 3].copy()
    area = (x2 - x1) * (y2 - y1)
    for i in range(count):
        if kept[i]:
            _suppress_others(i, x1, y1, x2, y2, area, thresholds[0], kept[:count])


@compiled
def _suppress_others(best, x1, y1, x2, y2, area, iou_threshold, kept):
    """Clear `kept` for the boxes behind `best` that overlap it by more than the threshold."""
    zero = np.float32(0)
    left, top, right, bottom, size = x1[best], y1[best], x2[best], y2[best], area[best]
    for j in range(best + 1, len(kept)):
        width = max(min(right, x2[j]) - max(left, x1[j]), zero)
        height = max(min(bottom, y2[j]) - max(top, y1[j]), zero)
        shared = width * height
        overlaps = shared / (size + area[j] - shared) > iou_threshold
        kept[j] = kept[j] and not overlaps


@compiled
def descending_order(keys) -> np.ndarray:
    """Return indices (N,) int64 that sort `keys` (N,) float32, greatest first.

    A bitonic network sorts a power of 2 of values, so the keys are padded with the greatest
    float32. It sorts upwards, which puts the padding last; the rest is then reversed.
    """
    size = 1
    while size < len(keys):
        size *= 2
    values = np.full(size, np.finfo(np.float32).max, np.float32)
    values[: len(keys)] = keys
    order = np.arange(size)
    block = 2
    while block <= size:
        distance = block // 2
        while distance > 0:
            _compare_pairs(values, order, block, distance)
            distance //= 2
        block *= 2
    return order[: len(keys)][::-1].copy()


@compiled
def _compare_pairs(values, order, block, distance):
    """Apply one layer of the network; blocks are sorted upwards and downwards in turn."""
    for first in range(0, len(values), 2 * distance):
        rising = first & block == 0
        for one in range(first, first + distance):
            other = one + distance
            wrong = values[one] > values[other] if rising else values[one] < values[other]
            if wrong:
                values[one], values[other] = values[other], values[one]
                order[one], order[other] = order[other], order[one]
