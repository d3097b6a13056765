"""Run a ResNet-50 in plain numpy, from weights by PyTorch's names, to test converted weights.

Written from the papers (He et al., 2015; Ioffe and Szegedy, 2015), not from the detector's code.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

BLOCKS = (3, 4, 6, 3)
WIDTHS = (64, 128, 256, 512)
Pads = tuple[int, int]  # rows above and below, columns to the left and right alike


def names_and_shapes(blocks_of_stages: Sequence[int] = BLOCKS) -> dict[str, tuple[int, ...]]:
    """Return names and shapes as in torchvision's ResNet-50, without classifier and counters."""
    shapes: dict[str, tuple[int, ...]] = {}

    def unit(conv: str, norm: str, out: int, channels: int, kernel: int) -> None:
        shapes[f"{conv}.weight"] = (out, channels, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = (out,)

    unit("conv1", "bn1", 64, 3, 7)
    channels = 64
    for stage, (blocks, width) in enumerate(zip(blocks_of_stages, WIDTHS), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            unit(f"{name}.conv1", f"{name}.bn1", width, channels, 1)
            unit(f"{name}.conv2", f"{name}.bn2", width, width, 3)
            unit(f"{name}.conv3", f"{name}.bn3", 4 * width, width, 1)
            if block == 0:
                unit(f"{name}.downsample.0", f"{name}.downsample.1", 4 * width, channels, 1)
            channels = 4 * width
    return shapes


def random_weights(
    small_variances: bool = False, blocks: Sequence[int] = BLOCKS
) -> dict[str, np.ndarray]:
    """Return weights whose features keep their size over the layers.

    Args:
        small_variances: use statistics of the size of epsilon, where its value matters much.
        blocks: number of blocks of the four stages.
    """
    shapes = names_and_shapes(blocks)
    return {name: _draw(name, shape, small_variances) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], small: bool) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) == 4:
        # Small statistics go with small activations before them, which the norm divides by.
        scale = np.sqrt(2 / np.prod(shape[1:])) * (0.01 if small else 1)
        values = scale * rng.standard_normal(shape, dtype=np.float32)
    elif name.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape) * (1e-4 if small else 1)
    elif name.endswith("weight"):
        last = ".bn3." in name or "downsample" in name
        values = rng.uniform(0.5, 1.5, shape) * (0.4 if last else 1)
    else:
        values = rng.standard_normal(shape) * (0.001 if small and "mean" in name else 0.1)
    return values.astype(np.float32)


class ResNet50:
    """Run the forward pass.

    Args:
        weights: by PyTorch's names.
        eps: epsilon of BatchNorm.
        v1: stride on the first 1x1 of a block; False: on the 3x3.
        pool: zero rows and columns (before, behind) around the input of the stem's pooling.
        stem: zero rows and columns of the 7x7 convolution.
        strided: zero rows and columns of 3x3 convolutions of stride 2.
    """

    def __init__(
        self,
        weights: dict[str, np.ndarray],
        eps: float,
        v1: bool,
        pool: Pads = (0, 1),
        stem: Pads = (3, 3),
        strided: Pads = (1, 1),
    ):
        self.weights = {name: value.astype(np.float64) for name, value in weights.items()}
        self.eps, self.v1, self.pool, self.stem, self.strided = eps, v1, pool, stem, strided

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        """Map (3, H, W) to C2, C3, C4, C5, each (channels, h, w) float64."""
        x = np.maximum(self._unit("conv1", "bn1", image, 2, self.stem), 0)
        # After a ReLU a zero has the same effect as minus infinity.
        padded = np.pad(x, [(0, 0), self.pool, self.pool])
        x = _windows(padded, 3, 2).max((3, 4))
        features = []
        for stage, blocks in enumerate(BLOCKS, 1):
            for block in range(blocks):
                x = self._block(f"layer{stage}.{block}", x, 2 if block == 0 and stage > 1 else 1)
            features.append(x)
        return features

    def _block(self, name: str, x: np.ndarray, stride: int) -> np.ndarray:
        first, second = (stride, 1) if self.v1 else (1, stride)
        out = np.maximum(self._unit(f"{name}.conv1", f"{name}.bn1", x, first), 0)
        pads = self.strided if second == 2 else (1, 1)
        out = np.maximum(self._unit(f"{name}.conv2", f"{name}.bn2", out, second, pads), 0)
        out = self._unit(f"{name}.conv3", f"{name}.bn3", out, 1)
        if f"{name}.downsample.0.weight" in self.weights:
            x = self._unit(f"{name}.downsample.0", f"{name}.downsample.1", x, stride)
        return np.maximum(out + x, 0)

    def _unit(
        self, conv: str, norm: str, x: np.ndarray, stride: int, pads: Pads = (0, 0)
    ) -> np.ndarray:
        """Apply a convolution and the normalisation after it."""
        kernel = self.weights[f"{conv}.weight"]
        windows = _windows(np.pad(x, [(0, 0), pads, pads]), kernel.shape[2], stride)
        out = np.tensordot(kernel, windows, axes=((1, 2, 3), (0, 3, 4)))
        gamma, beta, mean, variance = (
            self.weights[f"{norm}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return gamma * (out - mean) / np.sqrt(variance + self.eps) + beta


def _windows(x: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """Reshape (C, H, W) to (C, h, w, kernel, kernel)."""
    found = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (1, 2))
    return found[:, ::stride, ::stride]
