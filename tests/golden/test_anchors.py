"""Anchors against the recorded ones."""

import numpy as np
import pytest

from src.FasterRcnn.anchor_generator import AnchorGenerator


@pytest.mark.parametrize("setting", ["a", "b"])
def test_base_and_grid_anchors(golden, setting):
    recorded = np.load(golden.folder / "anchors.npz")
    strides = recorded[f"{setting}_strides"]
    for level, (stride, size) in enumerate(zip(strides, recorded["feature_shapes"])):
        generator = AnchorGenerator(
            stride, recorded[f"{setting}_scales"], recorded[f"{setting}_ratios"]
        )
        np.testing.assert_array_equal(generator.base_anchors, recorded[f"{setting}_base{level}"])
        grid = generator.grid_anchors(size, stride)
        assert grid.dtype == np.float32
        np.testing.assert_array_equal(grid, recorded[f"{setting}_level{level}"])


def test_ratio_major_order_and_given_centre():
    by_scale = AnchorGenerator(8, [1, 2], [0.5, 2.0]).base_anchors
    by_ratio = AnchorGenerator(8, [1, 2], [0.5, 2.0], scale_major=False).base_anchors
    np.testing.assert_array_equal(by_ratio, by_scale[[0, 2, 1, 3]])
    for centre in ((0.5, 10.5), np.array([0.5, 10.5])):
        centred = AnchorGenerator(8, [1], [1.0], ctr=centre).base_anchors
        np.testing.assert_array_equal(centred, [[-3, 7, 4, 14]])
