"""RoI pooling and its gradient against recorded values, by compiled kernels and by operators."""

from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from src.FasterRcnn import roi_align
from src.FasterRcnn.cpu.roi_kernels import roi_levels
from src.model_utils.config import Config

STRIDES = [4, 8, 16, 32]
LEVELS = range(len(STRIDES))
CHANNELS = 256


def summary(array):
    flat = array.astype(np.float64).ravel()
    return [flat.sum(), (flat**2).sum(), flat[0], flat[-1]]


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(Path(__file__).with_name("roi_extract.npz")))


@pytest.fixture(scope="module")
def features(golden):
    height, width = golden["image_hw"]
    maps = [
        np.random.default_rng(112 + i)
        .standard_normal((2, CHANNELS, height // s, width // s))
        .astype(np.float32)
        for i, s in enumerate(STRIDES)
    ]
    for i in LEVELS:
        np.testing.assert_allclose(summary(maps[i]), golden[f"feat{i}_check"], rtol=1e-9)
    return maps


@pytest.fixture(scope="module", params=[True, False], ids=["kernels", "operators"])
def result(request, golden, features):
    """Levels by the operators' rule, pooled values, and gradients of the four maps."""
    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")
    cotangent = np.random.default_rng(122).standard_normal((len(golden["rois"]), CHANNELS, 7, 7))
    cotangent = cotangent.astype(np.float32)
    np.testing.assert_allclose(summary(cotangent), golden["cotangent_check"], rtol=1e-9)
    config = Config(
        {"roi_layer": {"type": "RoIAlign", "out_size": 7, "sample_num": 2}, "threads": 2}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roi_align, "kernels_usable", lambda: request.param)
        extractor = roi_align.SingleRoIExtractor(config, CHANNELS, STRIDES, 2, 56)
    inputs = [Tensor(golden["rois"]), *map(Tensor, features)]
    grads = ops.GradOperation(get_all=True, sens_param=True)(extractor)
    return SimpleNamespace(
        levels=extractor.levels(inputs[0]).asnumpy(),
        pooled=extractor(*inputs).asnumpy(),
        grads=[grad.asnumpy() for grad in grads(*inputs, Tensor(cotangent))[1:]],
    )


def test_levels(golden, result):
    np.testing.assert_array_equal(result.levels, golden["level"])
    np.testing.assert_array_equal(roi_levels(golden["rois"], 56, 4), golden["level"])


def test_pooled_features(golden, result):
    np.testing.assert_allclose(result.pooled[:, ::8], golden["out_sub"], atol=1e-4)
    sums = result.pooled.sum((1, 2, 3), dtype=np.float64)
    np.testing.assert_allclose(sums, golden["out_sum"], atol=1e-4 * CHANNELS)
    sums = np.abs(result.pooled).sum((1, 2, 3), dtype=np.float64)
    np.testing.assert_allclose(sums, golden["out_abs"], rtol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_gradient(golden, result, level):
    grad = result.grads[level].astype(np.float64)
    sub = grad[:, ::32, ::2, ::2]
    np.testing.assert_allclose(sub, golden[f"grad{level}_sub"], atol=1e-4)
    found = [np.sqrt((grad**2).sum()), grad.sum()]
    np.testing.assert_allclose(found, golden[f"grad{level}_norm_sum"], rtol=1e-5, atol=1e-2)
