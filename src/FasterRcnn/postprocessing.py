"""From the box head's outputs to detections: decoding and NMS, class by class."""

from __future__ import annotations

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops

from src.errors import UserError
from src.FasterRcnn.nms import ClassSuppression
from src.model_utils.config import Config, setting


class DetectionsOfClasses(nn.Cell):
    """Compute the last part of a detector in evaluation; it has no weights.

    A subclass calls `test_mode_init`.
    """

    def test_mode_init(self, config: Config) -> None:
        """Set up what the other methods use."""
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
        """Return the detections of a batch of B images with P proposals each.

        Args:
            cls_logits: (B * P, num_classes).
            reg_logits: (B * P, 4 * classes), without columns for the background where
                `without_bg_loss` is set.
            mask_logits: (B * P,) bool, True for proposals that count.
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
        """Apply NMS within each class to the boxes that score above the threshold.

        Args:
            boxes_all: (B, C, P, 4) of the C classes without the background.
            scores_all: (B, C, P).
            mask_all: (B, 1, P) bool, True for proposals that count.

        Returns:
            Boxes (B, C * P, 5), labels (B, C * P, 1), mask (B, C * P, 1).
        """
        batch, classes, count = ops.shape(scores_all)
        labels = ops.reshape(ops.arange(classes), (1, classes, 1))
        labels = ops.tile(ops.cast(labels, mindspore.int32), (batch, 1, count))
        labels = ops.reshape(labels, (batch, classes * count, 1))
        boxes, mask = self.nms_test(boxes_all, scores_all, mask_all)
        return boxes, labels, mask


def generator_img_meta(
    n: int, ori_h: int, ori_w: int, in_h: int, in_w: int, keep_ratio: bool = True
) -> np.ndarray:
    """Return img_metas of `n` originals of the same size.

    Args:
        n: number of rows.
        ori_h, ori_w: height and width of the originals in pixels.
        in_h, in_w: height and width of the network's input in pixels.
        keep_ratio: the originals were scaled to fit, keeping their aspect ratio, as the data
            pipeline does.

    Returns:
        (n, 4) float32: height and width of the original, scale factors of height and width.
    """
    factors = in_h / ori_h, in_w / ori_w
    if keep_ratio:
        factors = (_fitting(ori_h, ori_w, in_h, in_w),) * 2
    return np.tile(np.array([ori_h, ori_w, *factors], np.float32), (n, 1))


def _fitting(height: int, width: int, in_h: int, in_w: int) -> float:
    """Return the scale factor of an original resized to fit in_h x in_w or in_w x in_h.

    If it is then still too high or too wide, it is resized again into the square of that side.
    """
    long, short = max(in_h, in_w), min(in_h, in_w)
    factor = min(long / max(height, width), short / min(height, width))
    total, sides = factor, _scaled(height, width, factor)
    for place, limit in enumerate((in_h, in_w)):
        if sides[place] > limit:
            again = min(limit / max(sides), limit / min(sides))
            total, sides = total * again, _scaled(*sides, again)
    return total


def _scaled(height: int, width: int, factor: float) -> tuple[int, int]:
    """Return the scaled sides in whole pixels, at least 1."""
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def usual_metas(config: Config) -> np.ndarray:
    """Return img_metas (1, 4) for images that come without.

    Raises:
        UserError: `restore_bbox` without the size of the originals.
    """
    height, width = config.img_height, config.img_width
    if not setting(config, "restore_bbox"):
        return np.array([[height, width, 1, 1]], np.float32)
    originals = setting(config, "ori_h"), setting(config, "ori_w")
    if min(originals) < 1:
        raise UserError(
            f"restore_bbox needs the size of the originals: ori_h is {originals[0]} and ori_w "
            f"{originals[1]}, expected 1 or more for both"
        )
    return generator_img_meta(1, *originals, height, width, config.keep_ratio)
