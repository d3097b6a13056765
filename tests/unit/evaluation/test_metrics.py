"""The twelve figures against pycocotools on files, as its own users call it."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from src.evaluation.metrics import FIGURES, box_figures

NAMES = {1: "cat", 2: "dog", 3: "bird"}
IMAGES = list(range(1, 13))


def truth(image, category, box, crowd=0):
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [float(value) for value in box],
        "area": float(box[2] * box[3]),
        "iscrowd": crowd,
    }


def annotated(seed=0, crowds=False):
    """Boxes of two categories and of all three sizes, on all images but the last."""
    rng = np.random.default_rng(seed)
    truths = []
    for image in IMAGES[:-1]:
        for _ in range(rng.integers(1, 5)):
            side = rng.choice([20, 60, 120], 1)[0] + rng.uniform(0, 8, 2)
            box = [*rng.uniform(0, 200, 2), *side]
            crowd = int(crowds and rng.random() < 0.2)
            truths.append(truth(image, int(rng.integers(1, 3)), box, crowd))
    return truths


def found(truths, shift=0.0, seed=1):
    """Each box again, moved by up to `shift` of its size, with a random score."""
    rng = np.random.default_rng(seed)
    detections = []
    for entry in truths:
        x, y, w, h = entry["bbox"]
        dx, dy = shift * rng.uniform(-1, 1, 2)
        detections.append(
            {
                "image_id": entry["image_id"],
                "category_id": entry["category_id"],
                "bbox": [x + dx * w, y + dy * h, w, h],
                "score": float(rng.random()),
            }
        )
    return detections


def by_pycocotools(folder, truths, detections):
    """Its figures, read from files."""
    coco = {
        "images": [{"id": image} for image in IMAGES],
        "categories": [{"id": id_, "name": name} for id_, name in NAMES.items()],
        "annotations": [{**entry, "id": 100 + n} for n, entry in enumerate(truths)],
    }
    (folder / "truth.json").write_text(json.dumps(coco))
    (folder / "found.json").write_text(json.dumps(detections))
    with contextlib.redirect_stdout(io.StringIO()):
        one = COCO(str(folder / "truth.json"))
        evaluation = COCOeval(one, one.loadRes(str(folder / "found.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(FIGURES, evaluation.stats))


def test_perfect_detections_have_an_ap_of_one():
    truths = annotated()
    figures, per_class, _ = box_figures(truths, found(truths), IMAGES, NAMES)
    for name in FIGURES:
        if name not in ("AR1", "AR10"):
            assert figures[name] == pytest.approx(1.0), name
    assert per_class == pytest.approx({"cat": 1.0, "dog": 1.0})


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("shift", [0.1, 0.3, 0.45])
def test_shifted_detections_have_what_pycocotools_says(tmp_path, shift, crowds):
    truths = annotated(3, crowds)
    detections = found(truths, shift)
    detections += found(annotated(4), 0.2, seed=5)[:10]
    expected = by_pycocotools(tmp_path, truths, detections)
    figures, per_class, per_class_50 = box_figures(truths, detections, IMAGES, NAMES)
    assert figures == pytest.approx(expected, abs=0, rel=0)
    assert np.mean(list(per_class.values())) == pytest.approx(figures["AP"])
    assert np.mean(list(per_class_50.values())) == pytest.approx(figures["AP50"])
    assert list(per_class_50) == list(per_class)
    assert 0 < figures["AP"] < 1


def test_what_cannot_be_measured_is_none(capsys):
    small = [truth(1, 1, (5, 5, 10, 10))]
    figures, per_class, _ = box_figures(small, found(small), IMAGES, NAMES)
    assert (figures["APs"], figures["AR1"]) == pytest.approx((1.0, 1.0))
    assert [name for name in FIGURES if figures[name] is None] == ["APm", "APl", "ARm", "ARl"]
    assert list(per_class) == ["cat"]
    assert json.loads(json.dumps(figures)) == figures
    assert capsys.readouterr().out == ""


def test_no_detection_at_all_is_zero():
    figures, per_class, _ = box_figures(annotated(), [], IMAGES, NAMES)
    assert figures == {name: 0.0 for name in FIGURES}
    assert per_class == {"cat": 0.0, "dog": 0.0}


def test_at_most_a_hundred_detections_of_an_image_count():
    truths = [truth(1, 1, (5, 5, 50, 50))]
    better = [{**found(truths)[0], "bbox": [150.0, 5.0, 50.0, 50.0], "score": 0.9}] * 100
    right = {**found(truths)[0], "score": 0.5}
    figures, *_ = box_figures(truths, [*better, right], IMAGES, NAMES)
    assert (figures["AP"], figures["AR100"]) == (0.0, 0.0)
    figures, *_ = box_figures(truths, [*better[:99], right], IMAGES, NAMES)
    assert figures["AR100"] == pytest.approx(1.0)


def test_detections_of_other_categories_do_not_count():
    truths = annotated()
    others = [{**entry, "category_id": 7, "score": 1.0} for entry in found(truths)]
    figures, per_class, _ = box_figures(truths, found(truths) + others, IMAGES, NAMES)
    assert figures["AP"] == pytest.approx(1.0) and list(per_class) == ["cat", "dog"]
