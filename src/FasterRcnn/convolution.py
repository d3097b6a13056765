"""The detector's 3x3 convolutions of stride 1: `nn.Conv2d`, computed by minimal filtering on CPUs.

Parameters, their names and their initial values are those of `nn.Conv2d`. Maps too small to gain,
other devices and machines without numba take the library's convolution.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

from src.FasterRcnn import blas, winograd
from src.FasterRcnn.compiled import graph_operator, thread_count


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of stride 1 that keeps the size of its maps.

    Args:
        in_channels, out_channels: of the maps.
        options: of `nn.Conv2d`: has_bias, weight_init, bias_init.
    """

    def __init__(self, in_channels: int, out_channels: int, **options: Any):
        super().__init__(in_channels, out_channels, 3, pad_mode="same", **options)
        self.filtered = blas.usable()
        if self.filtered:
            self.filter = filtering_operator(thread_count())

    def construct(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        batch, _, height, width = ops.shape(x)
        if not self.filtered or not winograd.worth_it(
            batch, self.in_channels, self.out_channels, height, width
        ):
            return super().construct(x)
        out = self.filter(x, self.weight)
        if self.has_bias:
            out = self.bias_add(out, self.bias)
        return out


def filtering_operator(threads: int) -> ops.Custom:
    """`winograd.convolve`, with its gradients, as an operator of a CPU graph."""

    def forward(x, weight):
        return winograd.convolve(x, weight, threads)

    def to_input(grad, weight):
        return winograd.input_gradient(grad, weight, threads)

    def to_weight(x, grad):
        return winograd.weight_gradient(x, grad, threads)

    def result_shape(x, weight):
        return [x[0], weight[0], x[2], x[3]]

    def input_shape(grad, weight):
        return [grad[0], weight[1], grad[2], grad[3]]

    def weight_shape(x, grad):
        return [grad[1], x[1], 3, 3]

    two, one = [ms.float32] * 2, [ms.float32]
    to_input_op = graph_operator(to_input, input_shape, two, one)
    to_weight_op = graph_operator(to_weight, weight_shape, two, one)

    def bprop(x, weight, out, dout):
        return to_input_op(dout, weight), to_weight_op(x, dout)

    return graph_operator(forward, result_shape, two, one, bprop)
