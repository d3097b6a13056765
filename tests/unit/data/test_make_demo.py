"""The drawn data set: the same bytes from a seed, tight boxes, crowds and empty images."""

import hashlib
import json

import cv2
import numpy as np
import pytest
from coco_files import run_script
from pycocotools.coco import COCO

from src.data import synthetic_cells, synthetic_coco
from src.data.synthetic_cells import CELLS, draw_cells
from src.data.synthetic_coco import CATEGORIES, DrawingPlan, draw_image
from src.errors import UserError
from src.model_utils.config import load_config

PLAN = DrawingPlan()
DRAWN = (
    "bd89b3ae16f29407641d1b3fc5bd2589",
    "9c68636d6ee5cfb08e2f9f2cd1cadff4",
)  # of three images, pixels and labels


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


def test_the_default_kind_is_drawn_as_ever(tmp_path):
    pixels = hashlib.md5()
    labels = []
    for part, number in ((0, 1), (0, 2), (1, 7)):
        image, annotations = draw_image(PLAN, part, number)
        pixels.update(image.tobytes())
        labels.append(annotations)
    assert (pixels.hexdigest(), hashlib.md5(json.dumps(labels).encode()).hexdigest()) == DRAWN


def cells(*numbers, plan=CELLS.plan):
    return [draw_cells(plan, 0, number) for number in numbers]


def test_cells_come_as_a_data_set_of_their_own_classes(tmp_path):
    for name in ("a", "b"):
        words = ("--kind=cells", f"--out={name}", "--images=17", "--val_images=1")
        ended = run_script("tools/make_demo_coco.py", *words, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    coco = json.loads((tmp_path / "a/annotations/instances_train2017.json").read_text())
    assert [entry["name"] for entry in coco["categories"]] == ["RBC", "WBC", "Platelets"]
    names = [entry["file_name"] for entry in coco["images"]]
    assert names[0] == "slide001_000001.jpg" and names[16] == "slide003_000017.jpg"
    assert all((tmp_path / "a/train2017" / name).is_file() for name in names)
    words = (
        "--json=a/annotations/instances_train2017.json", "--val=0.4", r"--group=^(slide\d+)_",
    )  # fmt: skip
    assert run_script("tools/split_coco.py", *words, cwd=tmp_path).returncode == 0


def test_cells_are_many_small_and_round_and_lie_in_the_image():
    found = [entry for _, annotations in cells(*range(1, 60)) for entry in annotations]
    sizes = {id_: [] for id_ in (1, 2, 3)}
    for entry in found:
        x, y, w, h = entry["bbox"]
        assert min(x, y) >= 0 and x + w <= PLAN.width and y + h <= PLAN.height
        if min(x, y) > 0 and x + w < PLAN.width and y + h < PLAN.height:
            sizes[entry["category_id"]].append((w, h))
    assert len(found) > 600 and len(sizes[1]) > 5 * len(sizes[2]) > 100
    for id_, (least, most) in {1: (26, 42), 2: (48, 76), 3: (8, 15)}.items():
        assert least <= min(map(min, sizes[id_])) and max(map(max, sizes[id_])) <= most
        assert all(0.8 < w / h < 1.25 for w, h in sizes[id_])
    counts = [len(annotations) for _, annotations in cells(*range(1, 60))]
    assert 0 in counts and max(counts) > 16


def test_boxes_of_cells_are_tight_and_some_cells_overlap(monkeypatch):
    drawn = []
    plain = synthetic_cells._draw_cell
    monkeypatch.setattr(
        synthetic_cells, "_draw_cell", lambda *args: drawn.append(plain(*args)) or drawn[-1]
    )
    overlapping = 0
    for number in range(1, 12):
        drawn.clear()
        ((_, annotations),) = cells(number)
        assert len(annotations) == len(drawn)
        for mask, entry in zip(drawn, annotations):
            x, y, w, h = entry["bbox"]
            inside = mask[y : y + h, x : x + w]
            assert inside.sum() == mask.sum()
            assert inside.any(axis=1)[[0, -1]].all() and inside.any(axis=0)[[0, -1]].all()
        overlapping += int((np.sum(drawn, axis=0) > 1).any()) if drawn else 0
    assert overlapping > 3


def test_a_slide_has_its_own_light_and_its_images_differ():
    same, other = cells(1, 2, 3), cells(9, 10, 11)
    assert len({image.tobytes() for image, _ in (*same, *other)}) == 6
    glass = [[np.median(image, axis=(0, 1)) for image, _ in group] for group in (same, other)]
    within = max(np.abs(group[0] - one).max() for group in glass for one in group)
    assert np.abs(np.mean(glass[0], axis=0) - np.mean(glass[1], axis=0)).max() > within


@pytest.mark.parametrize("word", ["--crowd_share=0.1", "--hue_spread=5", "--max_shapes=0"])
def test_parameters_that_cells_do_not_have_are_refused(tmp_path, word):
    ended = run_script("tools/make_demo_coco.py", "--kind=cells", word, cwd=tmp_path)
    assert ended.returncode == 2 and word.split("=")[0] in ended.stderr
    assert list(tmp_path.iterdir()) == []


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
