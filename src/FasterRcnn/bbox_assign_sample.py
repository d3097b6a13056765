"""Targets of the region proposal network: anchors assigned to ground truths and sampled."""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from src.FasterRcnn.assignment import BoxAssigner, BoxSampler, replace_rows


class BboxAssignSample(nn.Cell):
    """Assign the anchors of one image to its ground truths and sample those that are trained on.

    Args:
        config: provides `neg_iou_thr`, `pos_iou_thr`, `min_pos_iou`, `num_expected_pos`,
            `num_expected_neg`, `rpn_target_means` and `rpn_target_stds`.
        batch_size: unused, kept for callers of the usual signature; images come one at a time.
        num_bboxes: number of anchors.
        add_gt_as_proposals: unused; ground truths are no anchors, so it must be False.
    """

    def __init__(self, config: Any, batch_size: int, num_bboxes: int, add_gt_as_proposals: bool):
        super().__init__()
        self.num_bboxes = num_bboxes
        self.assigner = BoxAssigner(config.neg_iou_thr, config.pos_iou_thr, config.min_pos_iou)
        self.sampler = BoxSampler(config.num_expected_pos, config.num_expected_neg)
        self.encode = ops.BoundingBoxEncode(
            means=tuple(config.rpn_target_means), stds=tuple(config.rpn_target_stds)
        )

    def construct(
        self,
        gt_bboxes_i: Tensor,
        gt_labels_i: Tensor,
        valid_mask: Tensor,
        bboxes: Tensor,
        gt_valids: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the targets of all anchors of one image, and which of them count.

        Args:
            gt_bboxes_i: (G, 4) float32, x1, y1, x2, y2 in pixels.
            gt_labels_i: (G,) int32; unused, an anchor is an object or none.
            valid_mask: (num_bboxes,) bool, anchors that lie inside the image.
            bboxes: (num_bboxes, 4) float32 anchors.
            gt_valids: (G,) bool.

        Returns:
            Box deltas (num_bboxes, 4) float32, zero where not positive; whether they count
            (num_bboxes,) bool; labels (num_bboxes,) int32, 1 for positives; whether they count
            (num_bboxes,) bool, True for sampled anchors.
        """
        valid_mask, gt_valids = ops.cast(valid_mask, ms.bool_), ops.cast(gt_valids, ms.bool_)
        assigned = self.assigner(gt_bboxes_i, gt_valids, bboxes, valid_mask)
        pos_index, pos_used, neg_index, neg_used = self.sampler(assigned)
        pos_weight = self.mark(pos_index, pos_used)
        neg_weight = self.mark(neg_index, neg_used)
        truth = ops.maximum(assigned[pos_index] - 1, 0)
        deltas = self.encode(bboxes[pos_index], gt_bboxes_i[truth])
        deltas = replace_rows(deltas, pos_used, 0.0)
        targets = ops.scatter_nd(pos_index.reshape((-1, 1)), deltas, (self.num_bboxes, 4))
        return (
            targets,
            pos_weight > 0,
            ops.cast(pos_weight, ms.int32),
            pos_weight + neg_weight > 0,
        )

    def mark(self, index: Tensor, used: Tensor) -> Tensor:
        """Return (num_bboxes,) float32 with a 1 at each used index; used indices are distinct."""
        return ops.scatter_nd(
            index.reshape((-1, 1)), ops.cast(used, ms.float32), (self.num_bboxes,)
        )
