"""The detector's 3x3 convolutions of stride 1: `nn.Conv2d`, computed by minimal filtering on CPUs.

Parameters, their names and their initial values are those of `nn.Conv2d`. Maps too small to gain,
other devices and machines without numba take the library's convolution.
"""

from __future__ import annotations

import threading
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.FasterRcnn.cpu import blas
from src.FasterRcnn.cpu.blas import PLAIN, TRANSPOSED, products
from src.FasterRcnn.cpu.compiled import graph_operator, run_split, split_range, thread_count
from src.FasterRcnn.cpu.winograd_transforms import (
    PRODUCTS,
    TILE,
    give_result,
    give_weight,
    take_gradient,
    take_input,
    take_weight,
)

# Tiles in a piece: enough for the full rate of the products, few enough for the caches.
TILES_AT_ONCE = 160

_kept = threading.local()


def worth_it(batch: int, inputs: int, outputs: int, height: int, width: int) -> bool:
    """Whether this is faster than the library's convolution of maps of the given size.

    The weights have to be transformed in every step: it takes some tiles to pay for that, and
    few tiles may be half empty.
    """
    tiles = batch * _tiles(height) * _tiles(width)
    return tiles * 12 >= min(inputs, outputs)


def convolve(x: np.ndarray, weight: np.ndarray, threads: int) -> np.ndarray:
    """The convolution.

    Args:
        x: (B, I, H, W) float32.
        weight: (O, I, 3, 3) float32.
        threads: how many may run.

    Returns:
        (B, O, H, W) float32.
    """
    return _filtered(x, weight, False, threads)


def input_gradient(grad: np.ndarray, weight: np.ndarray, threads: int) -> np.ndarray:
    """Gradient of `convolve` with respect to x, from that of its result.

    It is the convolution of `grad` with the weight turned by 180 degrees and its channels swapped.
    """
    return _filtered(grad, weight, True, threads)


def weight_gradient(x: np.ndarray, grad: np.ndarray, threads: int) -> np.ndarray:
    """Gradient of `convolve` with respect to the weight.

    Args:
        x: (B, I, H, W) float32.
        grad: (B, O, H, W) float32, of the result.
        threads: how many may run.

    Returns:
        (O, I, 3, 3) float32.
    """
    inputs, outputs = x.shape[1], grad.shape[1]
    sums = _scratch("weights", PRODUCTS, outputs, inputs)
    rows, columns = _tile_rows(x), _tiles(x.shape[3])
    for start, end in _pieces(rows, columns):
        v = _scratch("input", PRODUCTS, inputs, (end - start) * columns)
        g = _scratch("result", PRODUCTS, outputs, (end - start) * columns)
        run_split(take_input, inputs, threads, x, start, end, v)
        run_split(take_gradient, outputs, threads, grad, start, end, g)
        products(g, v, sums, (PLAIN, TRANSPOSED), threads, onto=start > 0)
    weight = np.empty((outputs, inputs, 3, 3), np.float32)
    run_split(give_weight, outputs, threads, sums, weight)
    return weight


def _filtered(x: np.ndarray, weight: np.ndarray, backward: bool, threads: int) -> np.ndarray:
    """`weight` over x, or, backward, turned by 180 degrees and from its outputs to its inputs."""
    u = _scratch("weights", PRODUCTS, *weight.shape[:2])
    run_split(take_weight, len(weight), threads, weight, backward, u)
    rows, columns = _tile_rows(x), _tiles(x.shape[3])
    channels = weight.shape[1] if backward else weight.shape[0]
    result = np.empty((len(x), channels, *x.shape[2:]), np.float32)
    for start, end in _pieces(rows, columns):
        v = _scratch("input", PRODUCTS, x.shape[1], (end - start) * columns)
        m = _scratch("result", PRODUCTS, channels, (end - start) * columns)
        run_split(take_input, x.shape[1], threads, x, start, end, v)
        products(u, v, m, (TRANSPOSED if backward else PLAIN, PLAIN), threads)
        run_split(give_result, channels, threads, m, start, end, result)
    return result


def _tiles(length: int) -> int:
    return -(-length // TILE)


def _tile_rows(maps: np.ndarray) -> int:
    """Rows of tiles in all images."""
    return len(maps) * _tiles(maps.shape[2])


def _pieces(rows: int, columns: int) -> list[tuple[int, int]]:
    return split_range(rows, max(1, TILES_AT_ONCE // columns))


def _scratch(name: str, *shape: int) -> np.ndarray:
    """An array to work in, of this thread; fresh memory would cost more than the transforms."""
    size = int(np.prod(shape))
    held = getattr(_kept, name, None)
    if held is None or held.size < size:
        held = np.empty(size, np.float32)
        setattr(_kept, name, held)
    return held[:size].reshape(shape)


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
        if not self.filtered or not worth_it(
            batch, self.in_channels, self.out_channels, height, width
        ):
            return super().construct(x)
        out = self.filter(x, self.weight)
        if self.has_bias:
            out = self.bias_add(out, self.bias)
        return out


def filtering_operator(threads: int) -> ops.Custom:
    """`convolve`, with its gradients, as an operator of a CPU graph."""

    def forward(x, weight):
        return convolve(x, weight, threads)

    def to_input(grad, weight):
        return input_gradient(grad, weight, threads)

    def to_weight(x, grad):
        return weight_gradient(x, grad, threads)

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
