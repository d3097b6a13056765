"""Region proposal network: objectness and box offsets of every anchor, and their loss.

Ren et al., "Faster R-CNN", 2015, section 3.1. Names of sizes in this module:

    B     images of a batch
    C     channels of a pyramid level
    h, w  height and width of a level's map; they differ from level to level
    A     anchors of one position of a map
    N     anchors of one image: the sum of h * w * A over the levels
    G     ground-truth rows of one image, padding included

Maps are NCHW: logits (B, A, h, w), one logit per anchor, and offsets (B, 4 A, h, w), channels
4 a to 4 a + 3 for anchor a. Flat arrays over all anchors run level by level (finest first), then
row by row and column by column, with the A anchors of a position next to each other.

Boxes are float32 x1, y1, x2, y2 in pixels of the network's input; x2 and y2 are the last pixels,
so a width is x2 - x1 + 1. Offsets are (dx, dy, dw, dh), as `ops.BoundingBoxEncode` makes them: the
shift of the centre in parts of the anchor's width and height, and the logarithms of the ratios of
widths and heights, less the means and divided by the standard deviations of the configuration.
"""

from __future__ import annotations

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops

from src.FasterRcnn.bbox_assign_sample import BboxAssignSample
from src.FasterRcnn.cpu.convolution import Conv3x3
from src.FasterRcnn.precision import head_dtype
from src.model_utils.config import Config

SMOOTH_L1_BETA = 1.0 / 9.0
INIT_STD = 0.01


class RpnRegClsBlock(nn.Cell):
    """Apply a 3x3 convolution, then two 1x1 ones: the logit and the four offsets of each anchor.

    Args:
        in_channels, feat_channels: channels of the input and of the hidden map.
        num_anchors: anchors of one position.
        cls_out_channels: logits of one anchor.
        weight_conv, bias_conv, weight_cls, bias_cls, weight_reg, bias_reg: initial values;
            weights `(out, in, kernel, kernel)`, biases `(out,)`.
    """

    def __init__(
        self,
        in_channels: int,
        feat_channels: int,
        num_anchors: int,
        cls_out_channels: int,
        weight_conv: Tensor,
        bias_conv: Tensor,
        weight_cls: Tensor,
        bias_cls: Tensor,
        weight_reg: Tensor,
        bias_reg: Tensor,
    ):
        super().__init__()

        def conv1x1(out: int, weight: Tensor, bias: Tensor) -> nn.Conv2d:
            return nn.Conv2d(
                feat_channels, out, 1, has_bias=True, weight_init=weight, bias_init=bias
            )

        logits, offsets = num_anchors * cls_out_channels, num_anchors * 4
        self.rpn_conv = Conv3x3(
            in_channels,
            feat_channels,
            has_bias=True,
            weight_init=weight_conv,
            bias_init=bias_conv,
        )
        self.relu = ops.ReLU()
        self.rpn_cls = conv1x1(logits, weight_cls, bias_cls)
        self.rpn_reg = conv1x1(offsets, weight_reg, bias_reg)
        if head_dtype() != mindspore.float32:
            self.to_float(head_dtype())

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, C, h, w) to logits (B, A, h, w) and offsets (B, 4 A, h, w), float32."""
        x = self.relu(self.rpn_conv(x))
        logits, offsets = self.rpn_cls(x), self.rpn_reg(x)
        return ops.cast(logits, mindspore.float32), ops.cast(offsets, mindspore.float32)


class RPN(nn.Cell):
    """Compute logits and offsets of all levels with one shared block, and in training their loss.

    Args:
        config: the detector's configuration.
        batch_size: images of a batch, part of the losses' divisor.
        in_channels, feat_channels: channels of the pyramid and of the hidden map.
        num_anchors: anchors of one position.
        cls_out_channels: logits of one anchor; 1 means sigmoid.
    """

    def __init__(
        self,
        config: Config,
        batch_size: int,
        in_channels: int,
        feat_channels: int,
        num_anchors: int,
        cls_out_channels: int,
    ):
        super().__init__()
        block = _block(in_channels, feat_channels, num_anchors, cls_out_channels)
        # All levels share this block. It stays in a list because parameter names contain its index.
        self.rpn_convs_list = nn.CellList([block])
        anchors = num_anchors * sum(height * width for height, width in config.feature_shapes)
        self.get_targets = BboxAssignSample(config, batch_size, anchors, False)
        self.cls_loss = ops.SigmoidCrossEntropyWithLogits()
        self.reg_loss = ops.SmoothL1Loss(beta=SMOOTH_L1_BETA)
        self.divisor = float(config.num_expected_neg * batch_size)
        self.cls_weight = float(config.rpn_loss_cls_weight)
        self.reg_weight = float(config.rpn_loss_reg_weight)

    def construct(
        self,
        inputs: tuple[Tensor, ...],
        img_metas: Tensor,
        anchor_list: tuple[Tensor, ...],
        gt_bboxes: Tensor,
        gt_labels: Tensor,
        gt_valids: Tensor,
    ) -> tuple:
        """Compute the loss and the maps of a batch.

        Args:
            inputs: pyramid levels, each (B, C, h, w).
            img_metas: (B, 3) height, width and scale of the network's input.
            anchor_list: anchors of each level, (h * w * A, 4) x1, y1, x2, y2 in pixels.
            gt_bboxes: (B, G, 4) in pixels.
            gt_labels: (B, G); unused, an anchor is an object or none.
            gt_valids: (B, G) bool; False for padding and crowds.

        Returns:
            loss (1,), logits of each level (B, A, h, w), offsets of each level (B, 4 A, h, w),
            classification loss (1,), regression loss (1,), and a tuple of these two. Outside
            training the losses are 0.
        """
        cls_scores, bbox_preds = (), ()  # type: tuple, tuple
        for level in inputs:
            logits, offsets = self.rpn_convs_list[0](level)
            cls_scores += (logits,)
            bbox_preds += (offsets,)
        cls_loss = ops.zeros((1,), mindspore.float32)
        reg_loss = cls_loss
        if self.training:
            targets = self.batch_targets(img_metas, anchor_list, gt_bboxes, gt_labels, gt_valids)
            cls_loss, reg_loss = self.losses(cls_scores, bbox_preds, targets)
        loss = cls_loss * self.cls_weight + reg_loss * self.reg_weight
        return loss, cls_scores, bbox_preds, cls_loss, reg_loss, (cls_loss, reg_loss)

    def batch_targets(
        self,
        img_metas: Tensor,
        anchor_list: tuple[Tensor, ...],
        gt_bboxes: Tensor,
        gt_labels: Tensor,
        gt_valids: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Assign and sample the anchors of each image; no gradient flows through the targets.

        Args: as for `construct`.

        Returns:
            Offsets (B, N, 4), their weights (B, N), labels (B, N), 1 for objects, and their weights
            (B, N), all float32. A weight is 1 for a sampled anchor and 0 for all others; offsets
            count for sampled positives only.
        """
        anchors = ops.concat(anchor_list, 0)
        offsets, offset_weights, labels, label_weights = (), (), (), ()  # type: tuple, tuple, tuple, tuple
        inside = ops.Unstack()(inside_image(anchors, img_metas))
        boxes = ops.Unstack()(ops.cast(gt_bboxes, mindspore.float32))
        classes, valids = ops.Unstack()(gt_labels), ops.Unstack()(gt_valids)
        for i in range(ops.shape(img_metas)[0]):
            found = self.get_targets(boxes[i], classes[i], inside[i], anchors, valids[i])
            offsets += (found[0],)
            offset_weights += (ops.cast(found[1], mindspore.float32),)
            labels += (found[2],)
            label_weights += (ops.cast(found[3], mindspore.float32),)
        return (
            ops.stop_gradient(ops.stack(offsets)),
            ops.stop_gradient(ops.stack(offset_weights)),
            ops.stop_gradient(ops.cast(ops.stack(labels), mindspore.float32)),
            ops.stop_gradient(ops.stack(label_weights)),
        )

    def losses(
        self,
        cls_scores: tuple[Tensor, ...],
        bbox_preds: tuple[Tensor, ...],
        targets: tuple[Tensor, Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Sum the losses over the sampled anchors and divide by a constant.

        The constant is `num_expected_neg`, the sampling slots of an image, times the batch size,
        even if fewer anchors are sampled.

        Args:
            cls_scores: logits of each level, (B, A, h, w).
            bbox_preds: offsets of each level, (B, 4 A, h, w).
            targets: as `batch_targets` returns them.

        Returns:
            Classification loss (1,) and regression loss (1,).
        """
        offsets, offset_weights, labels, label_weights = targets
        logits = ops.concat([per_anchor(m, 1) for m in cls_scores], 1)
        preds = ops.concat([per_anchor(m, 4) for m in bbox_preds], 1)
        cls_loss = self.cls_loss(ops.squeeze(logits, -1), labels) * label_weights
        reg_loss = self.reg_loss(preds, offsets) * ops.expand_dims(offset_weights, -1)
        return (
            ops.reshape(ops.reduce_sum(cls_loss) / self.divisor, (1,)),
            ops.reshape(ops.reduce_sum(reg_loss) / self.divisor, (1,)),
        )


def _block(
    in_channels: int, feat_channels: int, num_anchors: int, cls_out_channels: int
) -> RpnRegClsBlock:
    """Make the block, with normal weights of standard deviation 0.01 and zero biases."""
    draw = np.random.default_rng(0)

    def weight(out: int, channels: int, kernel: int) -> Tensor:
        values = draw.normal(0, INIT_STD, (out, channels, kernel, kernel))
        return Tensor(values.astype(np.float32))

    def bias(out: int) -> Tensor:
        return Tensor(np.zeros(out, np.float32))

    logits, offsets = num_anchors * cls_out_channels, num_anchors * 4
    return RpnRegClsBlock(
        in_channels,
        feat_channels,
        num_anchors,
        cls_out_channels,
        weight(feat_channels, in_channels, 3),
        bias(feat_channels),
        weight(logits, feat_channels, 1),
        bias(logits),
        weight(offsets, feat_channels, 1),
        bias(offsets),
    )


def per_anchor(level: Tensor, width: int) -> Tensor:
    """Reshape a map (B, A * width, h, w) to (B, h * w * A, width), in the order of the anchors."""
    batch = ops.shape(level)[0]
    return ops.reshape(ops.transpose(level, (0, 2, 3, 1)), (batch, -1, width))


def inside_image(boxes: Tensor, img_metas: Tensor) -> Tensor:
    """Tell which boxes lie wholly inside an image.

    Args:
        boxes: (N, 4) x1, y1, x2, y2.
        img_metas: (B, 3) height, width, scale of each image.

    Returns:
        (B, N) bool.
    """
    x1, y1, x2, y2 = ops.Split(0, 4)(ops.transpose(boxes, (1, 0)))
    height, width, scale = ops.Split(1, 3)(img_metas)
    above = ops.logical_and(x1 >= 0, y1 >= 0)
    below = ops.logical_and(x2 <= width * scale - 1, y2 <= height * scale - 1)
    return ops.logical_and(above, below)
