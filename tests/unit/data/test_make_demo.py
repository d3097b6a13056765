"""The drawn data set: the same bytes from a seed, tight boxes, crowds and empty images."""

import hashlib
import json

import cv2
import numpy as np
import pytest
from coco_files import run_script
from pycocotools.coco import COCO

from src.data import synthetic_coco
from src.data.synthetic_coco import CATEGORIES, DrawingPlan, draw_image
from src.errors import UserError
from src.model_utils.config import load_config

PLAN = DrawingPlan()


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.md5(p.read_bytes()).hexdigest() for p in files}


def test_script_is_deterministic_and_in_cocos_layout(tmp_path):
    for name in ("a", "b"):
        words = (f"--out={name}", "--images=12", "--val_images=4", "--seed=3")
        ended = run_script("tools/make_demo_coco.py", *words, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert len(digest(tmp_path / "a")) == 12 + 4 + 2
    coco = COCO(str(tmp_path / "a" / "annotations" / "instances_val2017.json"))
    assert len(coco.getImgIds()) == 4 and len(coco.getCatIds()) == 4
    pixels = cv2.imread(str(tmp_path / "a" / "train2017" / "000000000001.jpg"))
    assert pixels.shape == (192, 320, 3)

    again = run_script("tools/make_demo_coco.py", "--out=a", cwd=tmp_path)
    assert again.returncode == 2 and "--overwrite" in again.stderr
    words = ("--out=a", "--images=2", "--val_images=1", "--overwrite")
    assert run_script("tools/make_demo_coco.py", *words, cwd=tmp_path).returncode == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "annotations", "train2017", "val2017",
    ]  # fmt: skip


def test_parts_seeds_and_images_differ():
    images = [
        draw_image(plan, part, number)[0].tobytes()
        for plan in (PLAN, DrawingPlan(seed=2))
        for part in (0, 1)
        for number in (1, 2)
    ]
    assert len(set(images)) == 8


def test_boxes_are_tight_inside_and_apart(monkeypatch):
    monkeypatch.setattr(
        synthetic_coco,
        "_background",
        lambda plan, rng: np.zeros((plan.height, plan.width, 3), "u1"),
    )
    for number in range(60):
        image, annotations = draw_image(PLAN, 0, number)
        drawn = image.any(axis=2)
        for annotation in annotations:
            x, y, w, h = annotation["bbox"]
            assert x >= 0 and y >= 0 and x + w <= PLAN.width and y + h <= PLAN.height
            assert annotation["iscrowd"] or 30 <= min(w, h) <= max(w, h) <= 100
            inside = drawn[y : y + h, x : x + w]
            assert inside.any(axis=1)[[0, -1]].all() and inside.any(axis=0)[[0, -1]].all()
            drawn[y : y + h, x : x + w] = False
        assert not drawn.any()


def test_mixture_of_categories_crowds_and_empty_images():
    images = [draw_image(PLAN, 0, number)[1] for number in range(300)]
    annotations = [annotation for image in images for annotation in image]
    used = {annotation["category_id"] for annotation in annotations}
    assert used == {id_ for id_, _ in CATEGORIES.values()}
    assert 5 < sum(not image for image in images) < 40
    assert 5 < sum(annotation["iscrowd"] for annotation in annotations) < 40
    assert set(CATEGORIES) <= set(load_config().coco_classes)


@pytest.mark.parametrize(
    "changes",
    [{"width": 10}, {"seed": -1}, {"max_shapes": 0}, {"crowd_share": 0.9, "empty_share": 0.2},
     {"crowd_share": float("nan")}, {"empty_share": -0.1}],
)  # fmt: skip
def test_plan_is_checked(changes):
    with pytest.raises(UserError):
        DrawingPlan(**changes).check()


@pytest.mark.parametrize("word", ["--images=0", "--width=3", "--imagse=4", "--out=/dev/null/x"])
def test_bad_flags_leave_nothing(tmp_path, word):
    ended = run_script("tools/make_demo_coco.py", word, cwd=tmp_path)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_json_lists_every_image(tmp_path):
    coco = synthetic_coco.draw_part(PLAN, tmp_path, "train2017", 0, 5)
    assert coco == json.loads((tmp_path / "annotations" / "instances_train2017.json").read_text())
    assert [e["file_name"] for e in coco["images"]] == sorted(
        path.name for path in (tmp_path / "train2017").iterdir()
    )
