"""3x3 convolution of stride 1 and padding 1, and its two gradients, by minimal filtering.

Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", 2016: F(4x4, 3x3). A tile of
4x4 results costs 36 products for each pair of channels instead of 144. The transforms
are in winograd_transforms.py.

A pass goes over the rows of tiles in pieces that fit the caches: transform, 36 matrix products,
transform back. The order of every sum is the same on any number of threads.
"""

from __future__ import annotations

import threading

import numpy as np

from src.FasterRcnn.blas import PLAIN, TRANSPOSED, products
from src.FasterRcnn.compiled import run_split, split_range
from src.FasterRcnn.winograd_transforms import (
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
