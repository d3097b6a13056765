"""From the box head's outputs to detections: decoding and suppression, class by class."""

from __future__ import annotations

import mindspore
from mindspore import Tensor, nn, ops

from src.FasterRcnn.suppression import ClassSuppression
from src.model_utils.config import Config


class DetectionsOfClasses(nn.Cell):
    """The last part of a detector in evaluation; it has no weights.

    The class that builds on it calls `test_mode_init`.
    """

    def test_mode_init(self, config: Config) -> None:
        """What the other methods use."""
        self.num_classes = config.num_classes
        self.box_classes = config.num_classes - 1 if config.without_bg_loss else config.num_classes
        self.decode = ops.BoundingBoxDecode(
            max_shape=(config.img_height, config.img_width),
            means=tuple(config.rcnn_target_means),
            stds=tuple(config.rcnn_target_stds),
        )
        self.softmax = ops.Softmax(axis=-1)
        self.nms_test = ClassSuppression(config.test_iou_thr, config.test_score_thr)

    def get_det_bboxes(
        self,
        cls_logits: Tensor,
        reg_logits: Tensor,
        mask_logits: Tensor,
        rois: Tensor,
        img_metas: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Detections of a batch of B images with P proposals each.

        Args:
            cls_logits: (B * P, num_classes).
            reg_logits: (B * P, 4 * classes), without columns for the background where
                `without_bg_loss` is set.
            mask_logits: (B * P,) bool of the proposals that count.
            rois: (B * P, 4) boxes of the proposals in pixels of the input.
            img_metas: (B, 4) height and width of the original, height and width factors.
        """
        batch = ops.shape(img_metas)[0]
        objects = self.num_classes - 1
        scores = ops.reshape(self.softmax(cls_logits)[:, 1:], (batch, -1, objects))
        offsets = ops.reshape(reg_logits, (-1, self.box_classes, 4))
        offsets = ops.reshape(offsets[:, self.box_classes - objects :], (-1, 4))
        anchors = ops.tile(ops.expand_dims(rois, 1), (1, objects, 1))
        boxes = self.decode(ops.reshape(anchors, (-1, 4)), offsets)
        boxes = ops.reshape(boxes, (batch, -1, objects, 4))
        height_factor, width_factor = img_metas[:, 2:3], img_metas[:, 3:4]
        factors = ops.concat((width_factor, height_factor, width_factor, height_factor), 1)
        boxes = boxes / ops.reshape(factors, (batch, 1, 1, 4))
        return self.multiclass_nms(
            ops.transpose(boxes, (0, 2, 1, 3)),
            ops.transpose(scores, (0, 2, 1)),
            ops.reshape(mask_logits, (batch, 1, -1)),
        )

    def multiclass_nms(
        self, boxes_all: Tensor, scores_all: Tensor, mask_all: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Suppression within each class, of the boxes that score above the threshold.

        Args:
            boxes_all: (B, C, P, 4) of the C classes without the background.
            scores_all: (B, C, P).
            mask_all: (B, 1, P) bool of the proposals that count.

        Returns:
            Boxes (B, C * P, 5), labels (B, C * P, 1), mask (B, C * P, 1).
        """
        batch, classes, count = ops.shape(scores_all)
        labels = ops.reshape(ops.arange(classes), (1, classes, 1))
        labels = ops.tile(ops.cast(labels, mindspore.int32), (batch, 1, count))
        labels = ops.reshape(labels, (batch, classes * count, 1))
        boxes, mask = self.nms_test(boxes_all, scores_all, mask_all)
        return boxes, labels, mask
