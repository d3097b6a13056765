"""Box head: two dense layers on the pooled features, then classes and class-wise offsets.

Girshick, "Fast R-CNN", 2015, section 2. Names of sizes in this module:

    N       rows, one per RoI slot of all images of the batch; `mask` tells which rows count
    C       channels of the pooled features
    h, w    bins of the pooled features, `roi_layer.out_size` each
    hidden  width of the two dense layers
    num_classes  classes with the background, which is class 0
    classes      classes that have offsets of their own: num_classes, or without the background
                 (`without_bg_loss`) num_classes - 1

Pooled features are NCHW float32, (N, C, h, w), flattened to (N, C * h * w) in this order. A dense
weight is stored (in, out), the transpose of `nn.Dense`. Offsets are (dx, dy, dw, dh), encoded as in
rpn.py with `rcnn_target_means` and `rcnn_target_stds`; column 4 k + i of the regression output is
offset i of the k-th of `classes`. On Ascend the dense layers multiply in float16; their results
are float32.
"""

from __future__ import annotations

import mindspore
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Initializer, Normal, XavierUniform, initializer

from src.FasterRcnn.precision import head_dtype
from src.model_utils.config import Config


class DenseNoTranpose(nn.Cell):
    """Apply a dense layer whose weight is stored `(input_channels, output_channels)`.

    Args:
        input_channels, output_channels: features in and out.
        weight_init: initial weight: an initialiser, its name, or a tensor; the bias starts at 0.
    """

    def __init__(
        self, input_channels: int, output_channels: int, weight_init: Initializer | str | Tensor
    ):
        super().__init__()
        shape = (input_channels, output_channels)
        self.weight = Parameter(initializer(weight_init, shape, mindspore.float32), name="weight")
        self.bias = Parameter(initializer("zeros", (output_channels,)), name="bias")
        self.matmul = ops.MatMul()
        self.bias_add = ops.BiasAdd()
        self.dtype = head_dtype()

    def construct(self, x: Tensor) -> Tensor:
        """Map (N, input_channels) to (N, output_channels) float32."""
        out = self.matmul(ops.cast(x, self.dtype), ops.cast(self.weight, self.dtype))
        return self.bias_add(ops.cast(out, mindspore.float32), self.bias)


class Rcnn(nn.Cell):
    """Compute the head and its loss (Girshick, "Fast R-CNN", section 2.3).

    Args:
        config: the detector's configuration.
        representation_size: features of one pooled region, C * h * w.
        batch_size: unused, kept for callers of the usual signature; the rows tell their number.
        num_classes: number of classes with the background.
        target_means, target_stds: unused, kept likewise; the targets come encoded.
    """

    def __init__(
        self,
        config: Config,
        representation_size: int,
        batch_size: int,
        num_classes: int,
        target_means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
        target_stds: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2),
    ):
        super().__init__()
        self.representation_size = representation_size
        self.num_classes = num_classes
        self.without_bg_loss = config.without_bg_loss
        self.box_classes = num_classes - 1 if config.without_bg_loss else num_classes
        hidden = config.rcnn_fc_out_channels
        self.shared_fc_0 = DenseNoTranpose(representation_size, hidden, XavierUniform())
        self.shared_fc_1 = DenseNoTranpose(hidden, hidden, XavierUniform())
        self.cls_scores = DenseNoTranpose(hidden, num_classes, Normal(0.01))
        self.reg_scores = DenseNoTranpose(hidden, self.box_classes * 4, Normal(0.01))
        self.relu = ops.ReLU()
        self.loss_cls = ops.SoftmaxCrossEntropyWithLogits()
        self.loss_bbox = ops.SmoothL1Loss(beta=1.0)
        self.cls_weight = float(config.rcnn_loss_cls_weight)
        self.reg_weight = float(config.rcnn_loss_reg_weight)

    def construct(
        self, featuremap: Tensor, bbox_targets: Tensor, labels: Tensor, mask: Tensor
    ) -> tuple:
        """Compute losses in training, logits and offsets in evaluation.

        Args:
            featuremap: (N, C, h, w) pooled features.
            bbox_targets: (N, 4) offsets.
            labels: (N,) class, 0 for the background.
            mask: (N,) or (N, 1), nonzero for the rows that count.

        Returns:
            In training total loss, classification loss and regression loss, each (1,), and a
            tuple of the last two. In evaluation, which ignores the last three inputs,
            logits (N, num_classes) twice, offsets (N, 4 * classes), and a tuple of these two.
        """
        x = ops.reshape(featuremap, (-1, self.representation_size))
        return self.from_first_layer(self.shared_fc_0(x), bbox_targets, labels, mask)

    def from_first_layer(
        self, x: Tensor, bbox_targets: Tensor, labels: Tensor, mask: Tensor
    ) -> tuple:
        """Do what `construct` does from the first dense layer's output (N, hidden), bias added."""
        x = self.relu(self.shared_fc_1(self.relu(x)))
        cls_score = self.cls_scores(x)
        bbox_pred = self.reg_scores(x)
        if not self.training:
            return cls_score, cls_score, bbox_pred, (cls_score, bbox_pred)
        weights = ops.cast(ops.reshape(mask, (-1,)), mindspore.float32)
        labels = ops.cast(labels, mindspore.int32)
        bbox_weights = ops.cast(labels > 0, mindspore.float32) * weights
        return self.loss(cls_score, bbox_pred, bbox_targets, bbox_weights, labels, weights)

    def loss(
        self,
        cls_score: Tensor,
        bbox_pred: Tensor,
        bbox_targets: Tensor,
        bbox_weights: Tensor,
        labels: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Compute cross entropy, and smooth L1 of the true class's offsets, per counted row.

        The regression loss sums over the rows with an object and is divided by all counted rows,
        as the classification loss is.

        Args:
            cls_score: (N, num_classes) logits.
            bbox_pred: (N, 4 * classes) offsets.
            bbox_targets: (N, 4) offsets.
            bbox_weights: (N,) float32, 1 for counted rows that hold an object.
            labels: (N,) int32.
            weights: (N,) float32, 1 for counted rows.

        Returns:
            Total, classification, regression, each (1,), and a tuple of the last two.
        """
        classes = one_hot(labels, self.num_classes)
        counted = ops.reduce_sum(weights)
        entropy, _ = self.loss_cls(cls_score, classes)
        # At least one, so that a batch without a single row gives 0 and not NaN.
        loss_cls = ops.reduce_sum(entropy * weights) / ops.maximum(counted, 1.0)

        if self.without_bg_loss:
            classes = classes[:, 1:]
            divisor = counted + 1e-4
        else:
            divisor = ops.maximum(counted, 1.0)
        bbox_pred = ops.reshape(bbox_pred, (-1, self.box_classes, 4))
        targets = ops.tile(ops.expand_dims(bbox_targets, 1), (1, self.box_classes, 1))
        of_class = ops.expand_dims(classes * ops.expand_dims(bbox_weights, -1), -1)
        loss_reg = ops.reduce_sum(self.loss_bbox(bbox_pred, targets) * of_class) / divisor

        loss_cls, loss_reg = ops.reshape(loss_cls, (1,)), ops.reshape(loss_reg, (1,))
        loss = loss_cls * self.cls_weight + loss_reg * self.reg_weight
        return loss, loss_cls, loss_reg, (loss_cls, loss_reg)


def one_hot(labels: Tensor, depth: int) -> Tensor:
    """Map (N,) int32 to (N, depth) float32; a label outside 0 to depth - 1 gives a row of zeros."""
    return ops.OneHot()(
        labels, depth, Tensor(1.0, mindspore.float32), Tensor(0.0, mindspore.float32)
    )
