"""Assign boxes to ground truths and sample them; both stages of the detector use this.

Ren et al., "Faster R-CNN", 2015, section 3.1.2. All arrays are of one image. Names of sizes:

    N  boxes to assign: anchors in the first stage, proposals in the second
    G  ground-truth rows, padding included
    V  ground truths that take part, the True rows of `truth_valid`

Boxes are float32 x1, y1, x2, y2 in pixels of the network's input. A width is x2 - x1 + 1, here as
in the box encoding. Assignments are int32: j + 1 for ground truth j, 0 for background, -1 for a box
that is neither and is not trained on. Overlaps are IoUs, (G, N) where they are kept as an array.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.FasterRcnn.cpu.compiled import compiled, graph_operator, kernels_usable


class BoxAssigner(nn.Cell):
    """Assign each box to a ground truth or to the background, or leave it out.

    A box whose best IoU reaches `pos_iou` belongs to that ground truth (the first one on a tie);
    below `neg_iou` it is background. Then each ground truth claims the boxes with its highest IoU,
    if that is at least `min_pos_iou`; a box that several claim goes to the last of them.

    Args:
        neg_iou: below it a box is background.
        pos_iou: from it on a box is foreground.
        min_pos_iou: least IoU at which a ground truth claims its best boxes.
    """

    def __init__(self, neg_iou: float, pos_iou: float, min_pos_iou: float):
        super().__init__()
        self.neg_iou, self.pos_iou, self.min_pos_iou = neg_iou, pos_iou, min_pos_iou
        self.compiled = kernels_usable()
        if self.compiled:
            self.assign = assignment_operator(neg_iou, pos_iou, min_pos_iou)
        else:
            self.iou = ops.IOU()
            self.best_truth = ops.ArgMaxWithValue(axis=0)

    def construct(
        self, truths: Tensor, truth_valid: Tensor, boxes: Tensor, box_valid: Tensor
    ) -> Tensor:
        """Assign the boxes of one image.

        Args:
            truths: (G, 4) float32, x1, y1, x2, y2.
            truth_valid: (G,) bool; False rows take no part.
            boxes: (N, 4) float32.
            box_valid: (N,) bool.

        Returns:
            (N,) int32: j + 1 for ground truth j, 0 for background, -1 for neither.
        """
        if self.compiled:
            return self.assign(truths, truth_valid, boxes, box_valid)
        return self.assign_by_operators(truths, truth_valid, boxes, box_valid)

    def assign_by_operators(
        self, truths: Tensor, truth_valid: Tensor, boxes: Tensor, box_valid: Tensor
    ) -> Tensor:
        """Apply the same rules with library operators, which takes several (G, N) arrays."""
        # Rows that take no part become single pixels outside the image, two different ones for
        # truths and boxes, so that they overlap nothing.
        truths = replace_rows(truths, truth_valid, -1.0)
        boxes = replace_rows(boxes, box_valid, -2.0)
        overlaps = self.iou(boxes, truths)  # (G, N)
        nearest, best = self.best_truth(overlaps)
        most = overlaps.max(axis=1, keepdims=True)
        claimable = ops.logical_and(most >= self.min_pos_iou, truth_valid.reshape((-1, 1)))
        claims = ops.cast(ops.logical_and(overlaps == most, claimable), ms.float32)
        # The greatest number among the claims of a box is that of the last claimant.
        numbers = ops.cast(ops.tuple_to_array(ops.make_range(1, truths.shape[0] + 1)), ms.float32)
        claimed = ops.cast((claims * numbers.reshape((-1, 1))).max(axis=0), ms.int32)
        assigned = ops.cast(best < self.neg_iou, ms.int32) - 1  # 0 background, -1 neither
        assigned = ops.select(best >= self.pos_iou, ops.cast(nearest, ms.int32) + 1, assigned)
        assigned = ops.select(claimed > 0, claimed, assigned)
        return ops.select(box_valid, assigned, ops.zeros_like(assigned) - 1)


def replace_rows(rows: Tensor, keep: Tensor, value: float) -> Tensor:
    """Return `rows` (N, any width) with `value` in the rows where the bool `keep` (N,) is False."""
    mask = ops.broadcast_to(keep.reshape((-1, 1)), rows.shape)
    return ops.select(mask, rows, ops.ones_like(rows) * value)


class BoxSampler(nn.Cell):
    """Sample positives and negatives at random; negatives use the slots that positives leave free.

    Args:
        num_pos: the largest number of positives.
        num_neg: slots for negatives; with p positives at most num_neg - p of them are used.
    """

    def __init__(self, num_pos: int, num_neg: int):
        super().__init__()
        self.draw_pos = ops.RandomChoiceWithMask(num_pos)
        self.draw_neg = ops.RandomChoiceWithMask(num_neg)
        self.num_neg = num_neg
        self.slots = Tensor(np.arange(num_neg), ms.int32)

    def construct(self, assigned: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sample the boxes of one image.

        Args:
            assigned: (N,) int32 as `BoxAssigner` returns it.

        Returns:
            Indices (num_pos,) int32 and whether each is used (num_pos,) bool, then the same for
            the negatives, (num_neg,). Unused slots hold index 0.
        """
        pos_index, pos_used = self.draw_pos(assigned > 0)
        neg_index, neg_used = self.draw_neg(assigned == 0)
        num_drawn = ops.cast(pos_used, ms.int32).sum()
        neg_used = ops.logical_and(neg_used, self.slots < self.num_neg - num_drawn)
        return pos_index.reshape((-1,)), pos_used, neg_index.reshape((-1,)), neg_used


def assignment_operator(neg_iou: float, pos_iou: float, min_pos_iou: float) -> ops.Custom:
    """Make `BoxAssigner`'s rules a compiled operator of a CPU graph, with the same arguments."""
    thresholds = np.array([neg_iou, pos_iou, min_pos_iou], np.float32)

    def assign(truths, truth_valid, boxes, box_valid):
        assigned = np.empty(len(boxes), np.int32)
        assign_boxes(
            truths[truth_valid], np.flatnonzero(truth_valid), boxes, box_valid, thresholds, assigned
        )
        return assigned

    return graph_operator(
        assign,
        lambda truths, truth_valid, boxes, box_valid: [boxes[0]],
        [ms.float32, ms.bool_, ms.float32, ms.bool_],
        [ms.int32],
    )


@compiled
def assign_boxes(truths, numbers, boxes, box_valid, thresholds, assigned) -> None:
    """Fill `assigned` (N,) int32.

    It keeps no (G, N) array: IoUs are computed once to find the best ground truth of each box and
    the highest IoU of each ground truth, and again to find which boxes have that highest IoU.

    Args:
        truths: (V, 4) valid ground truths.
        numbers: (V,) their indices among the G rows.
        boxes: (N, 4).
        box_valid: (N,) bool.
        thresholds: (3,) neg_iou, pos_iou, min_pos_iou.
    """
    neg_iou, pos_iou, min_pos_iou = thresholds
    best = np.zeros(len(boxes), np.float32)
    nearest = np.zeros(len(boxes), np.int64)
    most = np.zeros(len(truths), np.float32)
    for j in range(len(truths)):
        for i in range(len(boxes)):
            overlap = _iou(truths[j], boxes[i])
            if box_valid[i] and overlap > best[i]:
                best[i] = overlap
                nearest[i] = j
            if box_valid[i] and overlap > most[j]:
                most[j] = overlap
    for i in range(len(boxes)):
        assigned[i] = 0 if box_valid[i] and best[i] < neg_iou else -1
        if best[i] >= pos_iou and best[i] > 0:
            assigned[i] = numbers[nearest[i]] + 1
    for j in range(len(truths)):
        if most[j] < min_pos_iou:
            continue
        for i in range(len(boxes)):
            if box_valid[i] and _iou(truths[j], boxes[i]) == most[j]:
                assigned[i] = numbers[j] + 1


@compiled
def _iou(one, other):
    """Return the IoU of two boxes, float32, where a width is x2 - x1 + 1."""
    pixel = np.float32(1)
    width = min(one[2], other[2]) - max(one[0], other[0]) + pixel
    height = min(one[3], other[3]) - max(one[1], other[1]) + pixel
    if not (width > 0 and height > 0):
        return np.float32(0)
    shared = width * height
    area = (one[2] - one[0] + pixel) * (one[3] - one[1] + pixel)
    other_area = (other[2] - other[0] + pixel) * (other[3] - other[1] + pixel)
    return shared / (area + other_area - shared)
