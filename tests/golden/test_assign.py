"""Assignment and targets of both stages against recorded ones, by kernel and by operators."""

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.FasterRcnn import assignment
from src.FasterRcnn.bbox_assign_sample import BboxAssignSample
from src.FasterRcnn.bbox_assign_sample_stage2 import BboxAssignSampleForRcnn
from src.model_utils.config import load_config

GOLDEN = dict(np.load(Path(__file__).with_name("assign.npz")))
CASES = range(len(GOLDEN["case_names"]))
NUM_GTS, NUM_PROPOSALS = 16, 300


def grid_anchors():
    """All anchors of the image (N, 4): scale 8, ratios 1/2, 1 and 2, rounded, level by level."""
    levels = []
    for (height, width), stride in zip(GOLDEN["feature_shapes"], (4, 8, 16, 32, 64)):
        roots = np.sqrt([0.5, 1.0, 2.0])
        half = (np.stack([8 * stride / roots, 8 * stride * roots], 1) - 1) / 2
        centre = (stride - 1) / 2
        base = np.round(np.concatenate([centre - half, centre + half], 1))
        y, x = np.mgrid[:height, :width] * stride
        levels.append((np.stack([x, y, x, y], -1)[:, :, None] + base).reshape(-1, 4))
    return np.concatenate(levels).astype(np.float32)


ANCHORS = grid_anchors()


@pytest.fixture(scope="module", params=[True, False], ids=["kernel", "operators"])
def stages(request):
    """Both assigners, with samplers large enough to take every candidate."""
    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")
    candidates = NUM_GTS + NUM_PROPOSALS
    height, width = map(int, GOLDEN["image_hw"])
    config = load_config(
        img_height=height,
        img_width=width,
        num_gts=NUM_GTS,
        num_expected_neg=len(ANCHORS) + 128,
        num_expected_pos_stage2=candidates,
        num_expected_neg_stage2=2 * candidates,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assignment, "kernels_usable", lambda: request.param)
        return (
            BboxAssignSample(config, 2, config.num_bboxes, False),
            BboxAssignSampleForRcnn(config, 2, NUM_PROPOSALS, True),
        )


def case_of(number):
    head = f"case{number}_"
    return {key[len(head) :]: value for key, value in GOLDEN.items() if key.startswith(head)}


def call(cell, *arrays):
    return [tensor.asnumpy() for tensor in cell(*map(Tensor, arrays))]


@pytest.mark.parametrize("number", CASES)
def test_stage1(stages, number):
    case, valid = case_of(number), GOLDEN["anchors_valid"]
    assigner = stages[0].assigner
    found = assigner(*map(Tensor, (case["gt_boxes"], case["gt_valid"], ANCHORS, valid))).asnumpy()
    expected = case["stage1_assigned"]
    np.testing.assert_array_equal(found, expected)
    targets, weights, labels, label_weights = call(
        stages[0], case["gt_boxes"], case["gt_labels"], valid, ANCHORS, case["gt_valid"]
    )
    np.testing.assert_array_equal(weights, expected > 0)
    np.testing.assert_array_equal(labels, expected > 0)
    np.testing.assert_array_equal(label_weights, expected >= 0)
    wanted = np.zeros_like(targets)
    wanted[case["stage1_pos_index"]] = case["stage1_pos_targets"]
    np.testing.assert_allclose(targets, wanted, atol=1e-4)


def sorted_rows(*columns):
    """The rows of the columns side by side, in an order that does not depend on their order."""
    rows = np.concatenate([np.reshape(c, (len(c), -1)) for c in columns], 1)
    return rows[np.lexsort(rows[:, ::-1].T)]


@pytest.mark.parametrize("number", CASES)
def test_stage2(stages, number):
    case = case_of(number)
    boxes, deltas, labels, mask = call(
        stages[1],
        *(case[key] for key in ("gt_boxes", "gt_labels", "proposal_mask", "proposals", "gt_valid")),
    )
    used = mask[:, 0]
    taken = case["stage2_assigned"] >= 0
    candidates = np.concatenate([case["gt_boxes"], case["proposals"]])
    expected = sorted_rows(
        candidates[taken], case["stage2_label"][taken], case["stage2_deltas"][taken]
    )
    found = sorted_rows(boxes[used], labels[used], deltas[used])
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found[:, :5], expected[:, :5])
    np.testing.assert_allclose(found[:, 5:], expected[:, 5:], atol=1e-4)
    assert not labels[~used].any() and not deltas[~used].any()
