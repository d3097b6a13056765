"""Pooling with the first dense layer: as one after the other, for rows that count."""

from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.FasterRcnn.cpu.region_layer import RegionLayer, region_operator
from src.FasterRcnn.roi_align import SingleRoIExtractor

STRIDES = [4, 8, 16, 32]
HIDDEN = 6


@pytest.fixture(autouse=True)
def on_cpu():
    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")


def extractor() -> SingleRoIExtractor:
    config = SimpleNamespace(roi_layer=SimpleNamespace(out_size=3, sample_num=2), threads=2)
    return SingleRoIExtractor(config, 5, STRIDES, 2, 56)


class Joined(nn.Cell):
    """The operator under test."""

    def __init__(self):
        super().__init__()
        self.layer = region_operator(extractor(), training=True)

    def construct(self, a, b, c, d, rois, counts, weight):
        return self.layer(a, b, c, d, rois, counts, weight)[0]


class Apart(nn.Cell):
    """Pooling, then a product, then the rows that do not count set to zero."""

    def __init__(self):
        super().__init__()
        self.pool = extractor()

    def construct(self, a, b, c, d, rois, counts, weight):
        pooled = ops.reshape(self.pool(rois, a, b, c, d), (ops.shape(rois)[0], -1))
        counted = ops.cast(ops.expand_dims(counts, -1), ms.float32)
        return ops.matmul(pooled, weight) * counted


def inputs(counts: list[int]) -> list[Tensor]:
    draw = np.random.default_rng(1)
    maps = [draw.normal(size=(2, 5, 96 // s, 160 // s)) for s in STRIDES]
    corners = draw.uniform(0, 80, (len(counts), 2))
    sizes = draw.uniform(4, 15, (len(counts), 2)) * np.array([[1.0], [4.0], [8.0]] * 3)[:, :1]
    images = draw.integers(0, 2, (len(counts), 1))
    rois = np.concatenate((images, corners, corners + sizes[: len(counts)]), 1)
    weight = draw.normal(size=(45, HIDDEN))
    arrays = [a.astype(np.float32) for a in (*maps, rois)]
    arrays += [np.array(counts, np.int32), weight.astype(np.float32)]
    return [Tensor(a) for a in arrays]


def test_gradient_does_not_depend_on_what_was_kept():
    *maps, rois, counts, weight = (t.asnumpy() for t in inputs([1, 0, 1, 1, 0, 1, 1, 1, 0]))
    layer = RegionLayer(extractor(), threads=2)
    hidden, first = layer.forward(maps, rois, counts, weight)
    kept = layer.backward(np.ones_like(hidden), first, maps, rois, counts, weight)
    layer.forward(maps, rois[::-1].copy(), counts, weight)
    again = layer.backward(np.ones_like(hidden), first, maps, rois, counts, weight)
    for one, other in zip(kept, again):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("counts", [[1, 0, 1, 1, 0, 1, 1, 1, 0], [1] * 9, [0] * 9])
def test_result_and_gradients(counts):
    given = inputs(counts)
    sens = Tensor(np.random.default_rng(2).normal(size=(9, HIDDEN)).astype(np.float32))
    results = []
    for cell in (Joined(), Apart()):
        grads = ops.GradOperation(get_all=True, sens_param=True)(cell)(*given, sens)
        results.append([cell(*given), *grads[:4], grads[6]])
    for mine, theirs in zip(*results):
        np.testing.assert_allclose(mine.asnumpy(), theirs.asnumpy(), rtol=1e-4, atol=1e-4)
    assert not results[0][0].asnumpy()[np.array(counts) == 0].any()
