"""Targets of the box head: proposals assigned to ground truths and sampled."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.FasterRcnn.assignment import BoxAssigner, BoxSampler, replace_rows


class BboxAssignSampleForRcnn(nn.Cell):
    """Assign the proposals of one image to its ground truths and sample the RoIs to train on.

    Args:
        config: has `neg_iou_thr_stage2`, `pos_iou_thr_stage2`, `min_pos_iou_stage2`,
            `num_expected_pos_stage2`, `num_expected_neg_stage2`, `num_gts`, `rcnn_target_means`
            and `rcnn_target_stds`.
        batch_size: unused, kept for callers of the usual signature; images come one at a time.
        num_bboxes: number of proposals.
        add_gt_as_proposals: add the ground truths to the RoIs that are sampled from.
    """

    def __init__(self, config: Any, batch_size: int, num_bboxes: int, add_gt_as_proposals: bool):
        super().__init__()
        self.add_gt_as_proposals = add_gt_as_proposals
        self.gt_numbers = Tensor(np.arange(1, config.num_gts + 1), ms.int32)
        self.assigner = BoxAssigner(
            config.neg_iou_thr_stage2, config.pos_iou_thr_stage2, config.min_pos_iou_stage2
        )
        self.sampler = BoxSampler(config.num_expected_pos_stage2, config.num_expected_neg_stage2)
        self.encode = ops.BoundingBoxEncode(
            means=tuple(config.rcnn_target_means), stds=tuple(config.rcnn_target_stds)
        )

    def construct(
        self,
        gt_bboxes_i: Tensor,
        gt_labels_i: Tensor,
        valid_mask: Tensor,
        bboxes: Tensor,
        gt_valids: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return sampled RoIs of one image with targets; no gradient flows to the proposals.

        Args:
            gt_bboxes_i: (G, 4) float32, x1, y1, x2, y2 in pixels.
            gt_labels_i: (G,) int32 classes, 1 and up.
            valid_mask: (num_bboxes,) bool, proposals that NMS kept.
            bboxes: (num_bboxes, 4) float32 proposals.
            gt_valids: (G,) bool.

        Returns:
            For P slots of positives followed by Ng of negatives: boxes (P + Ng, 4) float32; box
            deltas (P + Ng, 4) float32, zero where not positive; classes (P + Ng,) int32, 0 for
            background and unused slots; whether the slot is used (P + Ng, 1) bool.
        """
        valid_mask, gt_valids = ops.cast(valid_mask, ms.bool_), ops.cast(gt_valids, ms.bool_)
        bboxes = ops.stop_gradient(bboxes)
        assigned = self.assigner(gt_bboxes_i, gt_valids, bboxes, valid_mask)
        if self.add_gt_as_proposals:
            own = ops.select(gt_valids, self.gt_numbers, ops.zeros_like(self.gt_numbers) - 1)
            assigned = ops.concat((own, assigned))
            bboxes = ops.concat((gt_bboxes_i, bboxes))
        pos_index, pos_used, neg_index, neg_used = self.sampler(assigned)
        truth = ops.maximum(assigned[pos_index] - 1, 0)
        positives = bboxes[pos_index]
        deltas = replace_rows(self.encode(positives, gt_bboxes_i[truth]), pos_used, 0.0)
        labels = gt_labels_i[truth] * ops.cast(pos_used, ms.int32)
        return (
            ops.concat((positives, bboxes[neg_index])),
            ops.concat((deltas, ops.zeros(neg_index.shape + (4,), ms.float32))),
            ops.concat((labels, ops.zeros_like(neg_index))),
            ops.concat((pos_used, neg_used)).reshape((-1, 1)),
        )
