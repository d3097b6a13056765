"""From the detector's output to COCO results."""

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from src.evaluation.detect import top_detections
from src.evaluation.metrics import coco_results

BOXES = np.array(
    [[0, 0, 5, 5, 0.3], [1, 1, 9, 4, 0.9], [2, 2, 6, 6, 0.8], [3, 3, 7, 7, 0.3]], np.float32
)
LABELS = np.array([[0], [2], [1], [2]], np.int32)


def test_best_first_without_the_masked():
    mask = np.array([[True], [True], [False], [True]])
    boxes, labels = top_detections(BOXES, LABELS, mask, 10)
    np.testing.assert_array_equal(boxes, BOXES[[1, 0, 3]])
    np.testing.assert_array_equal(labels, [2, 0, 2])
    boxes, labels = top_detections(BOXES, LABELS, mask, 2)
    np.testing.assert_array_equal(labels, [2, 0])
    assert top_detections(BOXES, LABELS, np.zeros(4, bool), 2)[0].shape == (0, 5)


def test_what_a_detector_predicts_is_scored_against_annotations():
    """A box that equals an annotation's has full overlap: COCO's width is x2 - x1."""
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": 42}],
        "categories": [{"id": 18}, {"id": 44}],
        "annotations": [
            {"id": 1, "image_id": 42, "category_id": 44, "bbox": [1, 1, 8, 3], "area": 24,
             "iscrowd": 0}
        ],
    }  # fmt: skip
    truth.createIndex()
    results = truth.loadRes(coco_results(42, BOXES[1:2], LABELS[1:2, 0], [1, 18, 44]))
    evaluation = COCOeval(truth, results, "bbox")
    evaluation.evaluate()
    assert evaluation.ious[(42, 44)][0, 0] == 1.0


def test_coco_results():
    results = coco_results(42, BOXES[1:3], LABELS[1:3, 0], category_ids=[1, 18, 44])
    assert [r["category_id"] for r in results] == [44, 18]
    assert results[0]["image_id"] == 42 and results[0]["bbox"] == [1.0, 1.0, 8.0, 3.0]
    assert abs(results[0]["score"] - 0.9) < 1e-6
    assert coco_results("9f-1c", BOXES[1:2], LABELS[1:2, 0], [1, 18, 44])[0]["image_id"] == "9f-1c"
