"""The detector's 3x3 convolutions of stride 1: `nn.Conv2d`, computed by Winograd filtering on CPUs.

Parameters, their names and their initial values are those of `nn.Conv2d`. Maps too small to gain,
other devices and machines without numba take the library's convolution.

The algorithm is F(4x4, 3x3) of Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks",
2016, section 4. It computes a 4x4 tile Y of the result from a 6x6 patch d of the input and a 3x3
filter g (matrices in winograd_transforms.py):

    Y = A' [ (G g G') * (B' d B) ] A        ' transposes, * multiplies element by element

Why tiles: the 36 element-wise products replace the 16 * 9 = 144 multiplications of the direct sum.
Larger tiles would save more, but lose precision and cost more additions in the transforms. Patches
of neighbouring tiles overlap by 2 pixels, and tiles that reach over the border see zeros.

A sum over input channels can be taken before the transform by A, which is linear. So the
element-wise products of all channels and tiles become one matrix product for each of the 36 points
of a patch. With I input channels, O output channels and T tiles:

    1. take_weight: all filters to u (36, O, I)
    2. take_input:  the patches of a piece to v (36, I, T)
    3. products:    m[k] = u[k] v[k], (36, O, T); the sum over input channels happens here
    4. give_result: m to the 4x4 tiles of the result

Steps 2 to 4 run piece by piece, a piece being some rows of tiles of all images, so that v and m
stay in the caches. Both gradients work on the same tiles:

    input:  steps 1 to 4 on the result's gradient, with the filters turned by 180 degrees and, in
            step 3, m[k] = u[k]' v[k] to swap the channels.
    weight: take_gradient makes g (36, O, T) of the result's gradient, and sums[k] += g[k] v[k]',
            (36, O, I). The sum over the tiles of a piece happens in the product, that over the
            pieces in the +=, and give_weight transforms the sums once at the end.
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

# Tiles in a piece, about: enough for the full rate of the products, few enough for the caches.
TILES_AT_ONCE = 160

_kept = threading.local()


def worth_it(batch: int, inputs: int, outputs: int, height: int, width: int) -> bool:
    """Tell whether this is faster than the library's convolution for maps of this size.

    The weights are transformed in every step, which pays off only with enough tiles; and on small
    maps a larger part of the tiles lies outside the map.
    """
    tiles = batch * _tiles(height) * _tiles(width)
    return tiles * 12 >= min(inputs, outputs)


def convolve(x: np.ndarray, weight: np.ndarray, threads: int) -> np.ndarray:
    """Convolve with stride 1; the maps keep their size.

    Args:
        x: (B, I, H, W) float32.
        weight: (O, I, 3, 3) float32.
        threads: the largest number of threads.

    Returns:
        (B, O, H, W) float32.
    """
    return _filtered(x, weight, False, threads)


def input_gradient(grad: np.ndarray, weight: np.ndarray, threads: int) -> np.ndarray:
    """Return the gradient of `convolve` with respect to x, from that of its result.

    It is the convolution of `grad` with the weight turned by 180 degrees and its channels swapped.
    """
    return _filtered(grad, weight, True, threads)


def weight_gradient(x: np.ndarray, grad: np.ndarray, threads: int) -> np.ndarray:
    """Return the gradient of `convolve` with respect to the weight.

    Args:
        x: (B, I, H, W) float32.
        grad: (B, O, H, W) float32, of the result.
        threads: the largest number of threads.

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
        # The first piece overwrites what an earlier call left in `sums`, the others add to it.
        products(g, v, sums, (PLAIN, TRANSPOSED), threads, onto=start > 0)
    weight = np.empty((outputs, inputs, 3, 3), np.float32)
    run_split(give_weight, outputs, threads, sums, weight)
    return weight


def _filtered(x: np.ndarray, weight: np.ndarray, backward: bool, threads: int) -> np.ndarray:
    """Convolve x with `weight`; backward, turn it by 180 degrees and swap its channels.

    Args:
        x: (B, I, H, W); backward the result's gradient, (B, O, H, W).
        weight: (O, I, 3, 3).

    Returns:
        (B, O, H, W); backward (B, I, H, W).
    """
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
    # Return the number of tiles along one side of a map.
    return -(-length // TILE)


def _tile_rows(maps: np.ndarray) -> int:
    """Return the number of rows of tiles, counted through all images."""
    return len(maps) * _tiles(maps.shape[2])


def _pieces(rows: int, columns: int) -> list[tuple[int, int]]:
    # Return [first, last) rows of tiles of each piece; a piece has at least one whole row.
    return split_range(rows, max(1, TILES_AT_ONCE // columns))


def _scratch(name: str, *shape: int) -> np.ndarray:
    """Return an uninitialised float32 work array that this thread reuses under `name`.

    Fresh memory in each call would cost more time than the transforms.
    """
    size = int(np.prod(shape))
    held = getattr(_kept, name, None)
    if held is None or held.size < size:
        held = np.empty(size, np.float32)
        setattr(_kept, name, held)
    return held[:size].reshape(shape)


class Conv3x3(nn.Conv2d):
    """Apply a 3x3 convolution of stride 1 that keeps the size of its maps.

    Args:
        in_channels, out_channels: channels of the input and of the output.
        options: of `nn.Conv2d`: has_bias, weight_init, bias_init.
    """

    def __init__(self, in_channels: int, out_channels: int, **options: Any):
        super().__init__(in_channels, out_channels, 3, pad_mode="same", **options)
        self.filtered = blas.usable()
        if self.filtered:
            self.filter = filtering_operator(thread_count())

    def construct(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
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
    """Make `convolve`, with its gradients, an operator of a CPU graph."""

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
