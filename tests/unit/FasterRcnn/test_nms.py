"""Suppression of all classes: the compiled kernel and the library's operators agree row for row."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.FasterRcnn import nms
from src.FasterRcnn.nms import ClassSuppression, sorting_suppression, suppress_classes

IMAGES, CLASSES = 2, 3
IOU_THRESHOLD, SCORE_THRESHOLD = 0.5, 0.05


@pytest.fixture(scope="module", autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")


@pytest.fixture(params=[True, False], ids=["kernel", "operators"])
def path(request, monkeypatch):
    """Makes the cells that a test builds take one of the two paths."""
    monkeypatch.setattr(nms, "kernels_usable", lambda: request.param)


def scene(count, kind, seed=0):
    """Boxes, scores and use of a batch, `count` boxes in each class."""
    rng = np.random.default_rng(seed)
    shape = (IMAGES, CLASSES, count)
    corner, size = rng.uniform(0, 40, (*shape, 2)), rng.uniform(0, 30, (*shape, 2))
    scores = rng.random(shape)
    if kind == "coarse":
        corner, size = np.floor(corner / 8) * 8, np.ceil(size / 8) * 8
        scores = rng.integers(0, 5, shape) / 4
    elif kind == "degenerate":
        size = np.where(rng.random(size.shape) < 0.5, 0, size - 10)
    elif kind == "equal scores":
        scores[:] = 0.7
    elif kind == "no scores":
        scores[:] = 0
    boxes = np.concatenate([corner, corner + size], -1)
    return boxes.astype(np.float32), scores.astype(np.float32), rng.random((IMAGES, 1, count)) < 0.8


def suppressed(boxes, scores, used, iou=IOU_THRESHOLD, score=SCORE_THRESHOLD):
    cell = ClassSuppression(iou, score)
    return [out.asnumpy() for out in cell(*map(Tensor, (boxes, scores, used)))]


@pytest.mark.parametrize("count", [1, 2, 5, 64, 100])
@pytest.mark.parametrize("kind", ["random", "coarse", "degenerate", "equal scores", "no scores"])
def test_both_paths_agree(monkeypatch, kind, count):
    arrays, found = scene(count, kind), []
    for usable in (True, False):
        monkeypatch.setattr(nms, "kernels_usable", lambda usable=usable: usable)
        found.append(suppressed(*arrays))
    (boxes, kept), (expected, expected_kept) = found
    assert boxes.shape == (IMAGES, CLASSES * count, 5)
    np.testing.assert_array_equal(kept, expected_kept)
    np.testing.assert_array_equal(boxes, expected)
    assert kept.any() == (kind != "no scores" and bool(arrays[2].any()))


@pytest.mark.parametrize("kind", ["random", "coarse", "degenerate", "equal scores", "no scores"])
def test_both_paths_agree_on_one_list(monkeypatch, kind):
    """As for proposals: all boxes take part, whatever they score."""
    boxes, scores, _ = scene(100, kind)
    candidates = np.concatenate([boxes[0, 0], scores[0, 0, :, None]], 1)
    found = []
    for usable in (True, False):
        monkeypatch.setattr(nms, "kernels_usable", lambda usable=usable: usable)
        found.append([out.asnumpy() for out in sorting_suppression(0.7)(Tensor(candidates))])
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert found[0][1].any()


def one_class(boxes, scores, used=None, **thresholds):
    """Scores and survival, in the order given out, of the boxes of one class."""
    arrays = np.float32([[boxes]]), np.float32([[scores]])
    use = np.array([[used or [True] * len(boxes)]])
    found, kept = suppressed(*arrays, use, **thresholds)
    return found[0, :, 4].tolist(), kept[0, :, 0].tolist()


def test_a_suppressed_box_suppresses_nothing(path):
    """Each box overlaps the next by 0.6, and the one after that by a third."""
    boxes = [[0, 0, 4, 1], [1, 0, 5, 1], [2, 0, 6, 1]]
    assert one_class(boxes, [0.75, 0.5, 0.25]) == ([0.75, 0.5, 0.25], [True, False, True])


def test_overlap_of_the_threshold_itself_is_allowed(path):
    boxes = [[0, 0, 4, 1], [0, 0, 2, 1]]
    assert one_class(boxes, [0.5, 0.75], iou=0.5) == ([0.75, 0.5], [True, True])
    assert one_class(boxes, [0.5, 0.75], iou=0.499) == ([0.75, 0.5], [True, False])


def test_a_box_needs_more_than_the_score_threshold(path):
    boxes = [[0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]]
    scores = [0.25, 0.5, 0.75]
    assert one_class(boxes, scores, score=0.5) == ([0.75, 0, 0], [True, False, False])


def test_a_box_that_does_not_count_suppresses_nothing(path):
    box = [0, 0, 10, 10]
    assert one_class([box, box], [0.75, 0.5], [False, True]) == ([0.5, 0], [True, False])


def test_threads_do_not_change_the_result():
    arrays = scene(100, "random")
    first, second = (
        suppress_classes(*arrays, IOU_THRESHOLD, SCORE_THRESHOLD, threads) for threads in (1, 3)
    )
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
