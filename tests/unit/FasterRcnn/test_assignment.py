"""Assigning and sampling boxes: both paths agree, counts hold, padding does no harm."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from src.FasterRcnn import assignment
from src.FasterRcnn.assignment import BoxAssigner, BoxSampler
from src.FasterRcnn.bbox_assign_sample import BboxAssignSample
from src.FasterRcnn.bbox_assign_sample_stage2 import BboxAssignSampleForRcnn
from src.model_utils.config import load_config

NUM_GTS, NUM_BOXES = 8, 200


@pytest.fixture(autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")


@pytest.fixture(params=[True, False], ids=["kernel", "operators"])
def path(request, monkeypatch):
    """Makes the cells that a test builds take one of the two paths."""
    monkeypatch.setattr(assignment, "kernels_usable", lambda: request.param)


def scene(seed):
    """Boxes on a coarse grid, so that equal IoUs abound; two ground truths are the same box."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 12, (NUM_BOXES, 2)) * 8.0
    boxes = np.concatenate([corner, corner + rng.integers(1, 5, (NUM_BOXES, 2)) * 8.0], 1)
    truths = boxes[rng.choice(NUM_BOXES, NUM_GTS)] + rng.integers(-1, 2, (NUM_GTS, 1)) * 2.0
    truths[1] = truths[0]
    return (
        truths.astype(np.float32),
        rng.random(NUM_GTS) < 0.8,
        boxes.astype(np.float32),
        rng.random(NUM_BOXES) < 0.8,
    )


def assigned(truths, truth_valid, boxes, box_valid, thresholds=(0.3, 0.7, 0.3)):
    cell = BoxAssigner(*thresholds)
    arrays = (np.float32(truths), np.array(truth_valid), np.float32(boxes), np.array(box_valid))
    return cell(*map(Tensor, arrays)).asnumpy().tolist()


def test_both_paths_agree(monkeypatch):
    found = []
    for usable in (True, False):
        monkeypatch.setattr(assignment, "kernels_usable", lambda usable=usable: usable)
        cell = BoxAssigner(0.3, 0.7, 0.3)
        found.append([cell(*map(Tensor, scene(seed))).asnumpy() for seed in range(6)])
    np.testing.assert_array_equal(found[0], found[1])
    assert set(np.unique(found[0])) == set(range(-1, NUM_GTS + 1))


def test_of_equal_ground_truths_the_last_claims_the_box(path):
    box = [0, 0, 9, 9]
    assert assigned([box, box], [True, True], [box, [50, 50, 59, 59]], [True, True]) == [2, 0]
    assert assigned([box, box], [True, False], [box, [50, 50, 59, 59]], [True, True]) == [1, 0]


def test_between_the_thresholds_a_box_is_ignored(path):
    truth, exact, half = [0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 9, 4]
    assert assigned([truth], [True], [exact, half], [True, True]) == [1, -1]


def test_best_box_below_the_upper_threshold_is_claimed(path):
    truth, half, none = [0, 0, 9, 9], [0, 0, 9, 4], [50, 50, 59, 59]
    assert assigned([truth], [True], [half, half, none], [True, False, True]) == [1, -1, 0]


@pytest.mark.parametrize(("thresholds", "expected"), [
    ((0.3, 0.5, 0.3), [1, 1]),  # from pos_iou on foreground
    ((0.5, 0.7, 0.3), [1, -1]),  # only below neg_iou background
    ((0.5, 0.5, 0.5), [1, 1]),  # as in the second stage
])  # fmt: skip
def test_a_box_that_overlaps_exactly_as_a_threshold_says(path, thresholds, expected):
    truth, exact, half = [0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 9, 4]
    found = assigned([truth], [True], [exact, half], [True, True], thresholds)
    assert found == expected


@pytest.mark.parametrize(("least", "expected"), [(0.5, [1, 0]), (0.51, [-1, 0])])
def test_a_ground_truth_claims_its_best_box_from_the_least_overlap_on(path, least, expected):
    truth, half, none = [0, 0, 9, 9], [0, 0, 9, 4], [50, 50, 59, 59]
    assert assigned([truth], [True], [half, none], [True, True], (0.3, 0.7, least)) == expected


def test_without_ground_truths_all_valid_boxes_are_background(path):
    garbage = [[np.nan] * 4, [3, 3, 1, 1]]
    boxes = [[0, 0, 9, 9], [0, 0, 9, 4]]
    assert assigned(garbage, [False, False], boxes, [True, False]) == [0, -1]


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [(3, 50, (3, 13)), (9, 50, (6, 10)), (0, 50, (0, 16)), (9, 4, (6, 4)), (0, 0, (0, 0))],
)
def test_sampler_fills_up_with_negatives(positives, negatives, expected):
    labels = np.full(80, -1, np.int32)
    labels[5 : 5 + positives] = 2
    labels[20 : 20 + negatives] = 0
    outputs = [tensor.asnumpy() for tensor in BoxSampler(6, 16)(Tensor(labels))]
    pos_index, pos_used, neg_index, neg_used = outputs
    assert [len(output) for output in outputs] == [6, 6, 16, 16]
    assert (pos_used.sum(), neg_used.sum()) == expected
    assert (labels[pos_index[pos_used]] > 0).all() and (labels[neg_index[neg_used]] == 0).all()
    assert len(set(neg_index[neg_used])) == expected[1]


def small_config():
    return load_config(
        num_gts=NUM_GTS,
        num_expected_pos=4,
        num_expected_neg=16,
        num_expected_pos_stage2=4,
        num_expected_neg_stage2=16,
    )


def both_stages():
    config = small_config()
    return (
        BboxAssignSample(config, 2, NUM_BOXES, False),
        BboxAssignSampleForRcnn(config, 2, NUM_BOXES, True),
    )


def test_sampled_counts_of_both_stages(path):
    truths, truth_valid, boxes, box_valid = scene(0)
    truth_valid[:] = True
    labels = np.arange(1, NUM_GTS + 1, dtype=np.int32) * 100
    args = [Tensor(array) for array in (truths, labels, box_valid, boxes, truth_valid)]
    first, second = both_stages()
    targets, weights, classes, class_weights = (out.asnumpy() for out in first(*args))
    assert (weights.sum(), classes.sum(), class_weights.sum()) == (4, 4, 16)
    assert targets.shape == (NUM_BOXES, 4) and not targets[weights == 0].any()
    rois, deltas, classes, mask = (out.asnumpy() for out in second(*args))
    assert [out.shape for out in (rois, deltas, classes, mask)] == [
        (20, 4),
        (20, 4),
        (20,),
        (20, 1),
    ]
    assert mask.sum() == 16 and set(classes[:4]) <= set(labels) and not classes[4:].any()
    assert not deltas[4:].any()


def test_padding_of_any_kind_gives_finite_targets(path):
    truths, _, boxes, _ = scene(0)
    truths[:] = [5, 5, -20, -20]
    invalid = np.zeros(NUM_GTS, bool)
    labels = np.full(NUM_GTS, -1, np.int32)
    args = [Tensor(array) for array in (truths, labels, np.ones(NUM_BOXES, bool), boxes, invalid)]
    for stage in both_stages():
        assert all(np.isfinite(out.asnumpy()).all() for out in stage(*args))


class Loss(nn.Cell):
    """The sum of the sampled boxes times a weight that the proposals depend on too."""

    def __init__(self, assigner):
        super().__init__()
        self.scale = Parameter(Tensor(1.0, ms.float32))
        self.assigner = assigner

    def construct(self, truths, labels, box_valid, boxes, truth_valid):
        proposals = boxes * self.scale
        rois, _, _, _ = self.assigner(truths, labels, box_valid, proposals, truth_valid)
        return (rois * self.scale).sum()


def test_proposals_get_no_gradient(path):
    truths, truth_valid, boxes, box_valid = scene(0)
    labels = np.ones(NUM_GTS, np.int32)
    net = Loss(both_stages()[1])
    args = [Tensor(array) for array in (truths, labels, box_valid, boxes, truth_valid)]
    loss, (grad,) = ops.value_and_grad(net, None, net.trainable_params())(*args)
    assert loss > 0 and float(grad) == pytest.approx(float(loss), rel=1e-5)
