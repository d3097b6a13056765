"""RoI pooling and the box head's first dense layer as one compiled operator.

A graph has a fixed number N of RoI slots, and some of them are padding. A joined operator knows
which rows count and neither pools nor multiplies the others: a row that does not count is zero and
has no gradient. With n counted rows and F = C * bins features of a pooled region:

    forward                                      backward
    1. select the n counted RoIs                 1. select the n rows of the gradient (n, hidden)
    2. pool them: (n, F)                         2. weight gradient (F, hidden) = pooled' gradient
    3. multiply by the weight (F, hidden)        3. pooled gradient (n, F) = gradient weight'
    4. scatter to (N, hidden), zero elsewhere    4. spread it over the maps (RoIAlign backward)

Step 2 of the backward pass needs the pooled features. `forward` keeps them in the operator's own
memory until `backward` takes them: as a tensor of the graph they would be copied twice and held
longer. `backward` then reuses their memory for the pooled gradient. The graph carries a number
instead, which says whether what is kept belongs to this result. If another `forward` has run in
between, it does not, and `backward` pools again.

The bias is not part of the operator; the caller adds it. RoIs get no gradient.
"""

from __future__ import annotations

import itertools

import mindspore as ms
import numpy as np
from mindspore import ops

from src.FasterRcnn.cpu import blas, roi_kernels
from src.FasterRcnn.cpu.blas import PLAIN, TRANSPOSED
from src.FasterRcnn.cpu.compiled import graph_operator, thread_count
from src.FasterRcnn.roi_align import SingleRoIExtractor

LARGEST_NUMBER = 2**31 - 1


class RegionLayer:
    """Compute the operator's forward and backward pass on arrays.

    Args:
        extractor: gives levels, bins and sampling points.
        threads: the largest number of threads.

    Attributes:
        kept: pooled features (n, F) of the last `forward` by its number; at most one entry.
    """

    def __init__(self, extractor: SingleRoIExtractor, threads: int):
        self.strides = np.array(extractor.strides, np.float32)
        self.bins = (extractor.out_size, extractor.out_size)
        self.rule = (extractor.sample_num, extractor.finest_scale, threads)
        self.threads = threads
        self.numbers = itertools.cycle(range(1, LARGEST_NUMBER))
        self.kept: dict[int, np.ndarray] = {}

    def forward(
        self,
        features: list[np.ndarray],
        rois: np.ndarray,
        counts: np.ndarray,
        weight: np.ndarray,
        keep: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pool, then multiply.

        Args:
            features: maps (B, C, H, W) float32, one per level, finest first.
            rois: (N, 5) float32, image index and box in pixels of the image.
            counts: (N,) int32, nonzero for the rows that count.
            weight: (C * bins, hidden) float32.
            keep: a backward pass may follow, so keep the pooled features.

        Returns:
            (N, hidden) float32, zero in rows that do not count, and the number (1,) int32 for
            `backward`.
        """
        rows = np.flatnonzero(counts)
        # Features that no backward pass has taken would hold memory for nothing.
        self.kept.clear()
        pooled = self._pool(features, rois[rows])
        hidden = np.zeros((len(rois), weight.shape[1]), np.float32)
        if len(rows):
            sums = np.empty((len(rows), weight.shape[1]), np.float32)
            blas.product(pooled, weight, sums, (PLAIN, PLAIN), self.threads)
            hidden[rows] = sums
        number = next(self.numbers)
        if keep:
            self.kept[number] = pooled
        return hidden, np.array([number], np.int32)

    def _pool(self, features: list[np.ndarray], rois: np.ndarray) -> np.ndarray:
        # Pool the RoIs (n, 5) to (n, F) float32.
        pooled = roi_kernels.pool_forward(features, rois, self.strides, self.bins, *self.rule)
        return pooled.reshape(len(rois), features[0].shape[1] * self.bins[0] * self.bins[1])

    def backward(
        self,
        grad: np.ndarray,
        number: np.ndarray,
        features: list[np.ndarray],
        rois: np.ndarray,
        counts: np.ndarray,
        weight: np.ndarray,
    ) -> tuple[np.ndarray, ...]:
        """Return the gradients of the first result of `forward` for features and weight.

        Args:
            grad: (N, hidden) float32.
            number: the second result of `forward`; all others are those given to `forward`.

        Returns:
            One (B, C, H, W) float32 array per level, then (C * bins, hidden) float32.
        """
        rows = np.flatnonzero(counts)
        pooled = self.kept.pop(int(number[0]), None)
        if pooled is None:
            pooled = self._pool(features, rois[rows])
        grad = np.ascontiguousarray(grad[rows])
        to_weight = np.zeros_like(weight)
        if len(rows):
            blas.product(pooled, grad, to_weight, (TRANSPOSED, PLAIN), self.threads)
            # The pooled features are not needed any more: the gradient overwrites them.
            blas.product(grad, weight, pooled, (PLAIN, TRANSPOSED), self.threads)
        to_pooled = pooled.reshape(len(rows), features[0].shape[1], *self.bins)
        shapes = [(len(one), *one.shape[2:]) for one in features]
        to_maps = roi_kernels.pool_backward(to_pooled, rois[rows], shapes, self.strides, *self.rule)
        return (*to_maps, to_weight)


def region_operator(extractor: SingleRoIExtractor, training: bool) -> ops.Custom:
    """Make `RegionLayer` an operator of a CPU graph, in training with its gradient.

    Returns:
        An operator of four maps, RoIs, counts and weight as `RegionLayer.forward` takes them.
    """
    layer = RegionLayer(extractor, thread_count())

    def forward(feat1, feat2, feat3, feat4, rois, counts, weight):
        return layer.forward([feat1, feat2, feat3, feat4], rois, counts, weight, training)

    def backward(grad, number, feat1, feat2, feat3, feat4, rois, counts, weight):
        maps = [feat1, feat2, feat3, feat4]
        return layer.backward(grad, number, maps, rois, counts, weight)

    def forward_shapes(feat1, feat2, feat3, feat4, rois, counts, weight):
        return [rois[0], weight[1]], [1]

    def backward_shapes(grad, number, feat1, feat2, feat3, feat4, rois, counts, weight):
        return feat1, feat2, feat3, feat4, weight

    real, whole = ms.float32, ms.int32
    given = [*[real] * 5, whole, real]
    backward_op = graph_operator(backward, backward_shapes, [real, whole, *given], [real] * 5)

    def bprop(feat1, feat2, feat3, feat4, rois, counts, weight, out, dout):
        grads = backward_op(dout[0], out[1], feat1, feat2, feat3, feat4, rois, counts, weight)
        nothing = (ops.zeros_like(rois), ops.zeros_like(counts))
        return (grads[0], grads[1], grads[2], grads[3]) + nothing + (grads[4],)

    return graph_operator(
        forward, forward_shapes, given, [real, whole], bprop if training else None
    )
