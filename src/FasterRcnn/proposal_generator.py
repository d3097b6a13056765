"""Proposals: the best anchors of each level, decoded, with NMS within each level.

Ren et al., "Faster R-CNN", 2015, section 3.1. Names of sizes in this module:

    B     images of a batch
    h, w  height and width of a level's map
    A     anchors of one position of a map

Maps are NCHW float32: logits (B, A, h, w), offsets (B, 4 A, h, w). Anchors and boxes are float32
x1, y1, x2, y2 in pixels of the network's input; a proposal is a row of 5, a box and its score, the
sigmoid of the logit. For each image: take the `nms_pre` best anchors of each level, decode their
offsets to boxes, apply NMS to the level, join the levels and take the `max_num` best. Shapes are
fixed in a graph, so what NMS suppresses stays as a row, and a bool mask says which rows count.
"""

from __future__ import annotations

import mindspore
from mindspore import Tensor, nn, ops

from src.FasterRcnn.nms import sorting_suppression
from src.model_utils.config import Config

# Below every score, so that suppressed boxes sort behind all others.
SUPPRESSED = -65500.0
# At most this many candidates per position, however many anchors it has: existing models were
# trained so.
CANDIDATES_PER_POSITION = 3


class Proposal(nn.Cell):
    """Select regions of interest from the maps of the region proposal network.

    Args:
        config: the detector's configuration.
        batch_size: unused, kept for callers of the usual signature; the maps tell the batch.
        num_classes, use_sigmoid_cls: unused, kept likewise; one logit per anchor is the only form.
        target_means, target_stds: means and standard deviations of the offsets, (dx, dy, dw, dh).
    """

    def __init__(
        self,
        config: Config,
        batch_size: int,
        num_classes: int,
        use_sigmoid_cls: bool,
        target_means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
        target_stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    ):
        super().__init__()
        self.sort = ops.TopK(sorted=True)
        self.gather = ops.Gather()
        self.join = ops.Concat(1)
        self.column = ops.ExpandDims()
        self.decode = ops.BoundingBoxDecode(
            max_shape=(config.img_height, config.img_width),
            means=tuple(target_means),
            stds=tuple(target_stds),
        )
        self.set_train_local(config, training=True)

    def set_train_local(self, config: Config, training: bool = True) -> None:
        """Use the sizes and the NMS threshold of training, or those of evaluation."""
        if training:
            self.nms_pre = config.rpn_proposal_nms_pre
            self.max_num = config.rpn_proposal_max_num
            threshold = config.rpn_proposal_nms_thr
        else:
            self.nms_pre = config.rpn_nms_pre
            self.max_num = config.rpn_max_num
            threshold = config.rpn_nms_thr
        self.nms = sorting_suppression(threshold)

    def construct(
        self,
        rpn_cls_score_total: tuple[Tensor, ...],
        rpn_bbox_pred_total: tuple[Tensor, ...],
        anchor_list: tuple[Tensor, ...],
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Select the proposals of each image of a batch.

        Args:
            rpn_cls_score_total: logits of each level, (B, A, h, w).
            rpn_bbox_pred_total: offsets of each level, (B, 4 A, h, w).
            anchor_list: anchors of each level, (h * w * A, 4).

        Returns:
            For each image (max_num, 5) x1, y1, x2, y2 in pixels and score, best first; and for
            each image (max_num,) bool, False for rows of padding.
        """
        scores, offsets = (), ()  # type: tuple, tuple
        for level in range(len(anchor_list)):
            scores += (ops.Unstack()(rpn_cls_score_total[level]),)
            offsets += (ops.Unstack()(rpn_bbox_pred_total[level]),)
        proposals, masks = (), ()  # type: tuple, tuple
        for i in range(ops.shape(rpn_cls_score_total[0])[0]):
            cls_scores, bbox_preds = (), ()  # type: tuple, tuple
            for level in range(len(anchor_list)):
                cls_scores += (scores[level][i],)
                bbox_preds += (offsets[level][i],)
            boxes, mask = self.get_bboxes_single(cls_scores, bbox_preds, anchor_list)
            proposals += (boxes,)
            masks += (mask,)
        return proposals, masks

    def get_bboxes_single(
        self,
        cls_scores: tuple[Tensor, ...],
        bbox_preds: tuple[Tensor, ...],
        mlvl_anchors: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor]:
        """Select the proposals of one image.

        Args:
            cls_scores: logits of each level, (A, h, w).
            bbox_preds: offsets of each level, (4 A, h, w).
            mlvl_anchors: anchors of each level, (h * w * A, 4).

        Returns:
            (max_num, 5) boxes with scores and (max_num,) mask.
        """
        boxes, kept = (), ()  # type: tuple, tuple
        for level in range(len(mlvl_anchors)):
            anchors, height, width = ops.shape(cls_scores[level])
            # Channels last, so that the flat order is that of the anchors.
            scores = ops.reshape(ops.transpose(cls_scores[level], (1, 2, 0)), (-1,))
            offsets = ops.reshape(ops.transpose(bbox_preds[level], (1, 2, 0)), (-1, 4))
            count = min(self.nms_pre, height * width * min(anchors, CANDIDATES_PER_POSITION))
            best, index = self.sort(ops.sigmoid(scores), count)
            decoded = self.decode(
                self.gather(mlvl_anchors[level], index, 0), self.gather(offsets, index, 0)
            )
            survivors, mask = self.nms(self.join((decoded, self.column(best, -1))))
            boxes += (survivors,)
            kept += (mask,)
        return self.best(ops.concat(boxes, 0), ops.concat(kept, 0))

    def best(self, boxes: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Take the `max_num` best of the kept boxes, padded with masked rows where they are fewer.

        Args:
            boxes: (n, 5) boxes with scores of all levels.
            kept: (n,) bool, True for boxes that NMS kept.

        Returns:
            (max_num, 5) boxes with scores and (max_num,) mask.
        """
        missing = self.max_num - ops.shape(boxes)[0]
        if missing > 0:
            boxes = ops.concat((boxes, ops.zeros((missing, 5), mindspore.float32)), 0)
            kept = ops.concat((kept, ops.zeros((missing,), mindspore.bool_)), 0)
        scores = ops.squeeze(ops.slice(boxes, (0, 4), (-1, 1)), -1)
        scores = ops.select(kept, scores, ops.ones_like(scores) * SUPPRESSED)
        _, index = self.sort(scores, self.max_num)
        return self.gather(boxes, index, 0), self.gather(kept, index, 0)
