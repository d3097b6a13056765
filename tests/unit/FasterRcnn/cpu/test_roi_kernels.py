"""RoI pooling: both paths agree, odd RoIs are harmless, the result ignores the thread count."""

import logging

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from src.errors import UserError
from src.FasterRcnn import roi_align
from src.FasterRcnn.cpu import compiled, roi_kernels
from src.model_utils.config import Config

STRIDES = np.array([4, 8, 16, 32], np.float32)
BINS, SAMPLES, FINEST = 3, 3, 8
IMAGE = 96
ODD_ROIS = {
    "no such image": [2, 8, 8, 40, 40],
    "negative image": [-1, 8, 8, 40, 40],
    "not a number": [0, np.nan, 8, 40, 40],
    "image not a number": [np.nan, 8, 8, 40, 40],
    "far outside": [0, 1e9, 1e9, 2e9, 2e9],
}


@pytest.fixture(scope="module")
def maps():
    rng = np.random.default_rng(0)
    return [
        rng.standard_normal((2, 5, IMAGE // int(s), IMAGE // int(s))).astype(np.float32)
        for s in STRIDES
    ]


@pytest.fixture(scope="module")
def rois():
    """RoIs of all levels; the last two hug the left border."""
    rng = np.random.default_rng(1)
    corner = rng.uniform(-4, IMAGE, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, IMAGE, (60, 2))], 1).clip(0, IMAGE)
    boxes[-2:] = [[0, 0, 0, 0], [0, 10, 0, 30]]
    return np.insert(boxes, 0, rng.integers(0, 2, 60), axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def cotangent(rois):
    return np.random.default_rng(2).standard_normal((len(rois), 5, BINS, BINS)).astype(np.float32)


def forward(maps, rois, threads=1):
    return roi_kernels.pool_forward(
        maps, np.asarray(rois, np.float32), STRIDES, (BINS, BINS), SAMPLES, FINEST, threads
    )


def backward(grad, rois, maps, threads=1):
    shapes = [(one.shape[0], *one.shape[2:]) for one in maps]
    return roi_kernels.pool_backward(grad, rois, shapes, STRIDES, SAMPLES, FINEST, threads)


def extractor_config(**roi_layer):
    layer = {"type": "RoIAlign", "out_size": BINS, "sample_num": SAMPLES, **roi_layer}
    return Config({"roi_layer": layer, "threads": 2})


def by_graph(usable, monkeypatch, maps, rois, cotangent):
    """Pooled values and map gradients of the cell on one of its paths."""
    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")
    monkeypatch.setattr(roi_align, "kernels_usable", lambda: usable)
    extractor = roi_align.SingleRoIExtractor(extractor_config(), 5, [4, 8, 16, 32], 2, FINEST)
    inputs = [Tensor(array) for array in (rois, *maps)]
    grads = ops.GradOperation(get_all=True, sens_param=True)(extractor)(*inputs, Tensor(cotangent))
    return [extractor(*inputs).asnumpy()] + [grad.asnumpy() for grad in grads]


def test_both_paths_agree(maps, rois, cotangent, monkeypatch):
    assert set(roi_kernels.roi_levels(rois, FINEST, 4)) == {0, 1, 2, 3}
    kernels = by_graph(True, monkeypatch, maps, rois, cotangent)
    operators = by_graph(False, monkeypatch, maps, rois, cotangent)
    np.testing.assert_allclose(kernels[0][:-2], operators[0][:-2], atol=1e-5)
    # The operators get boxes at the border 0.002 pixels wider, so that no row stays unwritten.
    np.testing.assert_allclose(kernels[0][-2:], operators[0][-2:], atol=5e-3)
    for ours, theirs in zip(kernels[1:], operators[1:]):
        np.testing.assert_allclose(ours, theirs, atol=5e-3)


def test_no_gradient_flows_to_the_boxes(maps, rois, cotangent, monkeypatch):
    grads = by_graph(True, monkeypatch, maps, rois, cotangent)
    assert grads[1].shape == rois.shape and not grads[1].any()


def test_backward_is_the_adjoint_of_forward(maps, rois, cotangent):
    pooled = forward(maps, rois).astype(np.float64)
    grads = backward(cotangent, rois, maps)
    through_maps = sum((g.astype(np.float64) * m).sum() for g, m in zip(grads, maps))
    assert through_maps == pytest.approx((pooled * cotangent).sum(), rel=1e-5)


@pytest.mark.parametrize("threads", [2, 3])
def test_result_does_not_depend_on_threads(maps, rois, cotangent, threads):
    np.testing.assert_array_equal(forward(maps, rois, threads), forward(maps, rois))
    many, one = backward(cotangent, rois, maps, threads), backward(cotangent, rois, maps)
    for ours, theirs in zip(many, one):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("roi", ODD_ROIS.values(), ids=ODD_ROIS.keys())
def test_odd_rois_pool_to_zero(maps, roi):
    rois = np.array([roi], np.float32)
    assert not forward(maps, rois).any()
    grads = backward(np.ones((1, 5, BINS, BINS), np.float32), rois, maps)
    assert not any(grad.any() for grad in grads)


def test_constant_map_pools_to_the_constant(maps):
    constant = [np.full_like(one, 7) for one in maps]
    np.testing.assert_allclose(
        forward(constant, [[1, 0, 0, 0, 0], [0, 9, 9, 50, 70]]), 7, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("side", "level"), [(1, 0), (112, 0), (112.01, 1), (224, 1), (224.01, 2), (448.01, 3), (9e3, 3)]
)
def test_level_of_a_square(side, level):
    rois = np.array([[0, 10, 20, 9 + side, 19 + side]], np.float32)
    assert roi_kernels.roi_levels(rois, 56, 4)[0] == level


@pytest.mark.parametrize("layer", [{"sample_num": 0}, {"out_size": 0}])
def test_empty_grid_is_refused(layer):
    with pytest.raises(UserError, match="roi_layer"):
        roi_align.SingleRoIExtractor(extractor_config(**layer), 5, [4, 8, 16, 32])


@pytest.mark.parametrize(
    ("device", "has_numba", "path"),
    [
        ("CPU", True, "compiled by numba"),
        ("CPU", False, "numba is not installed"),
        ("GPU", True, "GPU"),
    ],
)
def test_the_path_is_chosen_and_logged_once(device, has_numba, path, caplog):
    compiled._decide.cache_clear()
    with caplog.at_level(logging.INFO, compiled.logger.name):
        chosen = [compiled._decide(device, has_numba) for _ in range(2)]
    compiled._decide.cache_clear()
    assert chosen == [path == "compiled by numba"] * 2
    assert len(caplog.messages) == 1 and path in caplog.messages[0]


def test_kernels_compile_where_nothing_can_be_written(monkeypatch):
    compile_without_cache = compiled.numba.njit

    def njit(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_without_cache(**options)

    monkeypatch.setattr(compiled.numba, "njit", njit)

    def double(x):
        return 2 * x

    assert compiled.compiled(double)(4) == 8


def test_without_numba_functions_stay_plain(monkeypatch):
    monkeypatch.setattr(compiled, "numba", None)
    assert compiled.compiled(len) is len


def test_a_failing_job_is_reported():
    with pytest.raises(ZeroDivisionError):
        compiled.run_parallel(divmod, [(1, 1), (1, 0)], threads=2)


def test_split_range_covers_all():
    assert compiled.split_range(7, 3) == [(0, 3), (3, 6), (6, 7)]
    assert compiled.split_range(0, 3) == []
