"""What counts as found, missed, false and confused, and how they are counted."""

import math

import pytest

from src.evaluation.matching import ClassCount, confusion_of, counts_by_class, match

NAMES = {1: "cat", 2: "dog"}
BOX = (10.0, 10.0, 40.0, 40.0)


def truth(box=BOX, category=1, image=1, crowd=0):
    x, y, w, h = box
    return {
        "image_id": image, "category_id": category, "bbox": [x, y, w, h], "area": w * h,
        "iscrowd": crowd,
    }  # fmt: skip


def found(box=BOX, category=1, image=1, score=0.9):
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": score}


def matched(truths, detections):
    return match(truths, detections, [1, 2], NAMES)


def test_the_best_score_takes_an_object_and_a_second_detection_is_false():
    matches = matched([truth()], [found(score=0.6), found((12.0, 10.0, 40.0, 40.0), score=0.8)])
    assert (matches.found, matches.false) == ({1: 0}, {0})
    assert not matches.missed and not matches.confused


@pytest.mark.parametrize(("shift", "is_found"), [(13.0, True), (14.0, False)])
def test_an_overlap_of_half_is_needed(shift, is_found):
    """40 - 13 of 40 + 13 is 0.51, 40 - 14 of 40 + 14 is 0.48."""
    matches = matched([truth()], [found((10.0 + shift, 10.0, 40.0, 40.0))])
    assert bool(matches.found) is is_found
    assert (matches.missed, matches.false) == ((set(), set()) if is_found else ({0}, {0}))


def test_only_boxes_of_one_image_match():
    matches = matched([truth(image=1)], [found(image=2)])
    assert (matches.missed, matches.false) == ({0}, {0}) and not matches.confused


def test_a_detection_of_another_class_is_a_confusion_only_where_the_object_is_left():
    truths = [truth(), truth((100.0, 10.0, 40.0, 40.0), 2)]
    detections = [found(), found(category=2), found((100.0, 10.0, 40.0, 40.0), 1)]
    matches = matched(truths, detections)
    assert matches.found == {0: 0} and matches.confused == {2: 1}
    assert matches.false == {1, 2} and matches.missed == {1}
    confusion = confusion_of(matches, truths, detections, NAMES)
    assert confusion == [("cat", "cat", 1), ("dog", "cat", 1), (None, "dog", 1)]


def test_crowds_and_their_detections_count_neither_way():
    truths = [truth((0.0, 0.0, 200.0, 200.0), crowd=1), truth((300.0, 0.0, 20.0, 20.0))]
    inside = [found((float(x), 20.0, 30.0, 30.0)) for x in (0, 50, 100)]
    matches = matched(truths, inside)
    assert not matches.found and not matches.false and matches.missed == {1}
    other = matched(truths, [found((0.0, 0.0, 200.0, 200.0), category=2)])
    assert other.false == {0} and not other.confused


def test_a_category_that_is_not_evaluated_does_not_count():
    matches = matched([truth(category=7)], [found(category=7)])
    assert not any([matches.found, matches.missed, matches.false, matches.confused])


def test_all_detections_of_a_crowded_image_count():
    """pycocotools takes 100 for the AP."""
    boxes = [(float(x % 20) * 50, float(x // 20) * 50, 40.0, 40.0) for x in range(150)]
    matches = matched([truth(box) for box in boxes], [found(box) for box in boxes])
    assert len(matches.found) == 150 and not matches.missed


def test_nothing_at_all_is_nothing():
    matches = matched([], [])
    assert confusion_of(matches, [], [], NAMES) == []


def test_counts_of_a_class_add_up_to_its_objects_and_detections():
    confusion = [("a", "a", 14), ("a", "b", 2), ("a", None, 1), ("b", "b", 5), (None, "a", 3)]
    counts = counts_by_class(confusion)
    assert counts == {"a": ClassCount(14, 3, 3), "b": ClassCount(5, 0, 2)}
    assert (counts["a"].recall, counts["b"].precision) == (14 / 17, 5 / 7)
    assert math.isnan(ClassCount(false=1).recall) and math.isnan(ClassCount(missed=1).precision)
