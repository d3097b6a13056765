"""RoI feature extraction: pool each box to a fixed grid from the pyramid level of its size."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.errors import UserError
from src.FasterRcnn.cpu import roi_kernels
from src.FasterRcnn.cpu.compiled import graph_operator, kernels_usable, thread_count

NARROWEST = 0.002


class ROIAlign(nn.Cell):
    """Apply RoIAlign to one feature map with the library's operator.

    Args:
        out_size_h: bins along the height.
        out_size_w: bins along the width.
        spatial_scale: cells of the map per pixel of the image.
        sample_num: sampling points per bin and axis; 0 lets the operator choose.
    """

    def __init__(self, out_size_h: int, out_size_w: int, spatial_scale: float, sample_num: int = 0):
        super().__init__()
        self.align_op = ops.ROIAlign(out_size_h, out_size_w, spatial_scale, sample_num)

    def construct(self, features: Tensor, rois: Tensor) -> Tensor:
        """Map (B, C, H, W) and (N, 5) of image index and box in pixels to (N, C, out_h, out_w)."""
        # The CPU operator skips a box that lies within a thousandth of a pixel of the left border
        # and leaves its row unwritten; a minimal width of NARROWEST pixels prevents this.
        image, left, top, right, bottom = ops.split(rois, 1, axis=1)
        right = ops.select(
            ops.logical_and(ops.abs(left) < NARROWEST, ops.abs(right) < NARROWEST),
            ops.ones_like(right) * NARROWEST,
            right,
        )
        return self.align_op(features, ops.concat((image, left, top, right, bottom), 1))


class SingleRoIExtractor(nn.Cell):
    """Pool RoIs from a four-level pyramid, each from the one level that suits its size.

    The level is that of Lin et al., "Feature Pyramid Networks", 2017, equation 1; boxes with sides
    (the root of the area) up to twice `finest_scale` pixels use the finest level.

    Args:
        config: provides `roi_layer` (out_size, sample_num).
        out_channels: unused, channels of the maps.
        featmap_strides: pixels per cell of each level, finest first.
        batch_size: unused, kept for callers of the usual signature; the maps tell the batch.
        finest_scale: see above.

    Raises:
        UserError: `roi_layer` asks for no bins or no sampling points.
    """

    def __init__(
        self,
        config: Any,
        out_channels: int,
        featmap_strides: list[int],
        batch_size: int = 1,
        finest_scale: int = 56,
    ):
        super().__init__()
        self.out_size, self.sample_num = config.roi_layer.out_size, config.roi_layer.sample_num
        if min(self.out_size, self.sample_num) < 1:
            raise UserError(
                f"roi_layer: out_size is {self.out_size} and sample_num {self.sample_num}, "
                "expected 1 or more for both"
            )
        self.strides = list(featmap_strides)
        self.finest_scale = finest_scale
        self.limits = [(finest_scale * 2.0**i) ** 2 for i in range(1, len(featmap_strides))]
        self.compiled = kernels_usable()
        if self.compiled:
            threads = thread_count()
            self.pool = pooling_operator(
                featmap_strides, self.out_size, self.sample_num, finest_scale, threads
            )
        else:
            self.roi_layers = self.build_roi_layers(featmap_strides)

    def set_train_local(self, config: Any, training: bool = True) -> None:
        """Do nothing; kept for callers that set training or evaluation, which the inputs show."""

    def num_inputs(self) -> int:
        """Return the number of pyramid levels."""
        return len(self.limits) + 1

    def build_roi_layers(self, featmap_strides: list[int]) -> nn.CellList:
        """Make one library operator per level."""
        size = self.out_size
        return nn.CellList([ROIAlign(size, size, 1 / s, self.sample_num) for s in featmap_strides])

    def construct(
        self, rois: Tensor, feat1: Tensor, feat2: Tensor, feat3: Tensor, feat4: Tensor
    ) -> Tensor:
        """Map (N, 5) RoIs and four (B, C, H, W) maps to (N, C, out_size, out_size), float32."""
        if self.compiled:
            return self.pool(feat1, feat2, feat3, feat4, rois)
        levels = self.levels(rois)
        feats = (feat1, feat2, feat3, feat4)
        pooled = ops.zeros((1,), ms.float32)
        for i, layer in enumerate(self.roi_layers):
            share = ops.cast(levels == i, ms.float32).reshape((-1, 1, 1, 1))
            pooled = pooled + share * layer(feats[i], rois)
        return pooled

    def levels(self, rois: Tensor) -> Tensor:
        """Return each RoI's pyramid level (N,) int32, by the rule of `roi_kernels.roi_levels`."""
        sides = ops.maximum(rois[:, 3:5] - rois[:, 1:3] + 1.0, 0.0)
        area = sides[:, 0] * sides[:, 1]
        level = ops.zeros_like(area)
        for limit in self.limits:
            level = level + ops.cast(area > limit, ms.float32)
        return ops.cast(level, ms.int32)


def pooling_operator(
    featmap_strides: list[int], out_size: int, sample_num: int, finest_scale: int, threads: int
) -> ops.Custom:
    """Make the compiled pooling, with its gradient, an operator of a CPU graph.

    Returns:
        An operator of four maps (B, C, H, W) and RoIs (N, 5), giving (N, C, out_size, out_size).
    """
    strides = np.array(featmap_strides, np.float32)

    def forward(feat1, feat2, feat3, feat4, rois):
        return roi_kernels.pool_forward(
            [feat1, feat2, feat3, feat4],
            rois,
            strides,
            (out_size, out_size),
            sample_num,
            finest_scale,
            threads,
        )

    def backward(grad, rois, *outlines):
        shapes = [(one.shape[0], *one.shape[2:]) for one in outlines]
        return tuple(
            roi_kernels.pool_backward(
                grad, rois, shapes, strides, sample_num, finest_scale, threads
            )
        )

    def grad_shapes(grad, rois, *outlines):
        return tuple([one[0], grad[1], one[2], one[3]] for one in outlines)

    backward_op = graph_operator(backward, grad_shapes, [ms.float32] * 6, [ms.float32] * 4)

    def bprop(feat1, feat2, feat3, feat4, rois, out, dout):
        # The gradient needs only batch size, height and width of the maps, so pass one channel.
        grads = backward_op(dout, rois, feat1[:, :1], feat2[:, :1], feat3[:, :1], feat4[:, :1])
        return grads[0], grads[1], grads[2], grads[3], ops.zeros_like(rois)

    def pooled_shape(feat1, feat2, feat3, feat4, rois):
        return [rois[0], feat1[1], out_size, out_size]

    return graph_operator(forward, pooled_shape, [ms.float32] * 5, [ms.float32], bprop)
