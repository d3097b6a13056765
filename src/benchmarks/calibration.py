"""How fast this machine multiplies: MindSpore's own matrix product and 3x3 convolution.

Measured in the process of a workload, on its threads, so that a slow or a busy machine shows in
both alike.
"""

from __future__ import annotations

import time
from typing import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

SIDE = 2048
CHANNELS, HEIGHT, WIDTH = 256, 96, 160
MATMUL_FLOPS = 2 * SIDE**3
CONV_FLOPS = 2 * HEIGHT * WIDTH * CHANNELS**2 * 9


class _MatMul(nn.Cell):
    """One product, as a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.matmul = ops.MatMul()

    def construct(self, x: Tensor, y: Tensor) -> Tensor:
        return self.matmul(x, y)


class _Conv(nn.Cell):
    """One 3x3 convolution, as a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = ops.Conv2D(CHANNELS, 3, pad_mode="pad", pad=1)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.conv(x, weight)


class Calibration:
    """Compiled once; `measure` can be called again and again between pieces of a workload."""

    def __init__(self) -> None:
        self._matmul = _MatMul()
        self._conv = _Conv()

    def measure(self, repeats: int = 5) -> dict[str, float]:
        """The best rate of `repeats`, in 10**9 operations a second.

        Returns:
            `matmul_gflops` of 2048 x 2048 x 2048 and `conv_gflops` of 256 channels at 96 x 160,
            float32.
        """
        rng = np.random.default_rng(0)

        def draw(*shape: int) -> Tensor:
            return Tensor(rng.standard_normal(shape, dtype=np.float32), ms.float32)

        matmul = (draw(SIDE, SIDE), draw(SIDE, SIDE))
        conv = (draw(1, CHANNELS, HEIGHT, WIDTH), draw(CHANNELS, CHANNELS, 3, 3))
        return {
            "matmul_gflops": MATMUL_FLOPS / _best(lambda: self._matmul(*matmul), repeats) / 1e9,
            "conv_gflops": CONV_FLOPS / _best(lambda: self._conv(*conv), repeats) / 1e9,
        }


def _best(run: Callable[[], Tensor], repeats: int) -> float:
    """Fewest seconds of `repeats` runs; one before them compiles."""
    run().asnumpy()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run().asnumpy()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
