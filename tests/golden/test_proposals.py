"""Proposals from the recorded maps against the recorded proposals."""

import numpy as np
import pytest
from mindspore import Tensor

from src.FasterRcnn.anchor_generator import AnchorGenerator
from src.FasterRcnn.proposal_generator import Proposal


def proposals(golden, max_num):
    """Boxes and masks of the two recorded images, from their recorded maps."""
    config = golden.config("main16", rpn_proposal_max_num=max_num)
    maps = np.load(golden.folder / "net_forward.npz")
    anchors = tuple(
        Tensor(
            AnchorGenerator(stride, config.anchor_scales, config.anchor_ratios).grid_anchors(
                size, stride
            )
        )
        for stride, size in zip(config.anchor_strides, config.feature_shapes)
    )
    scores = tuple(Tensor(maps[f"rpn_cls{level}"]) for level in range(2, 7))
    offsets = tuple(Tensor(maps[f"rpn_reg{level}"]) for level in range(2, 7))
    boxes, masks = Proposal(config, 2, 2, True)(scores, offsets, anchors)
    return [b.asnumpy() for b in boxes], [m.asnumpy() for m in masks]


def assert_same_boxes(found, expected):
    """Equal as sets: each box has its own counterpart within 0.02 px and 1e-4 of score."""
    assert len(found) == len(expected)
    apart = np.abs(found[:, None] - expected[None])
    equal = (apart[..., :4].max(-1) < 0.02) & (apart[..., 4] < 1e-4)
    assert equal.any(1).all() and equal.any(0).all()


def test_best_proposals(golden):
    recorded = np.load(golden.folder / "net_proposals.npz")
    boxes, masks = proposals(golden, max_num=300)
    for i in range(2):
        assert masks[i].all()
        assert_same_boxes(boxes[i], recorded[f"proposals_{i}"])
        assert (np.diff(boxes[i][:, 4]) <= 0).all()


@pytest.mark.parametrize("spare", [0, 50])
def test_all_survivors_first_and_the_rest_masked(golden, spare):
    recorded = np.load(golden.folder / "net_proposals.npz")
    candidates = int(recorded["all_count_0"][1])
    boxes, masks = proposals(golden, max_num=candidates + spare)
    for i in range(2):
        survivors = int(recorded[f"all_count_{i}"][0])
        assert boxes[i].shape == (candidates + spare, 5)
        assert masks[i][:survivors].all() and not masks[i][survivors:].any()
        assert_same_boxes(boxes[i][:survivors], recorded[f"all_survivors_{i}"])
