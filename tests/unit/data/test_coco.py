"""COCO json files good and bad: what is read, clipped, dropped, counted or refused."""

import json

import numpy as np
import pytest
from coco_files import coco_of, write_coco

from src.data.coco import find_json, image_folders, load_labels, read_coco
from src.data.coco_boxes import rows_within
from src.dataset import create_coco_label
from src.errors import UserError
from src.model_utils.config import load_config


def labels_of(folder, coco, **changes):
    path = write_coco(folder, coco)
    return load_labels(load_config(instance_set=str(path), **changes))


def one_box(folder, box, **extra):
    """The rows and the notes for a single annotation in an image of 48x32."""
    coco = coco_of(1)
    coco["annotations"][0].update(bbox=box, **extra)
    labels = labels_of(folder, coco)
    (image,) = labels.images
    return rows_within(image.boxes, image.size, labels.notes).tolist(), dict(labels.notes)


@pytest.mark.parametrize(
    ("box", "row", "note"),
    [
        ([3.7, 2.2, 20.6, 25.9], [3, 2, 24, 28], None),
        ([0, 0, 48, 32], [0, 0, 48, 32], None),
        ([0, 0, 48.01, 32], [0, 0, 48, 32], None),
        ([5.2, 5.2, 0.5, 0.5], None, "below a pixel"),
        ([5.8, 5.8, 0.5, 0.5], [5, 5, 6, 6], None),
        ([0.1, 0.2, 0.5, 0.4], None, "parts of the image"),
        ([0, 0, 1, 1], None, "parts of the image"),
        ([0.5, 0.5, 0.9, 0.6], None, "parts of the image"),  # as YOLO's middle and size
        ([-0.01, 0.2, 1.01, 0.9], None, "parts of the image"),
        ([1, 1, 1, 1], [1, 1, 2, 2], None),
        ([0.5, 0.5, 2, 2], [0, 0, 2, 2], None),
        ([0, 0, 2, 2], [0, 0, 2, 2], None),
        ([10, 4, 40, 28], [10, 4, 48, 32], "partly outside"),
        (["1", "2", "3", "4"], [1, 2, 4, 6], None),
        ([-10, 4, 20, 20], [0, 4, 10, 24], "clipped"),
        ([40, 20, 30, 30], [40, 20, 48, 32], "clipped"),
        ([60, 4, 20, 20], None, "outside the image, dropped"),
        ([-30, 4, 20, 20], None, "outside the image, dropped"),
        ([4, 4, 0, 20], None, "zero or negative size"),
        ([4, 4, 20, -3], None, "zero or negative size"),
        ([4, 4, float("nan"), 3], None, "finite"),
        ([4, 4, float("inf"), 3], None, "finite"),
        ([10**400, 4, 3, 3], None, "four numbers"),
        ([4, 4, 20], None, "four numbers"),
        ([4, 4, None, 20], None, "four numbers"),
        (None, None, "without bbox"),
        ([], None, "without bbox"),
        ("box", None, "as bbox (it is text)"),
        ("1234", None, "as bbox (it is text)"),
        ({"x": 1}, None, "as bbox (it is an object)"),
    ],
)
def test_boxes(tmp_path, box, row, note):
    rows, notes = one_box(tmp_path, box)
    assert rows == ([[*row, 17, 0]] if row else [])
    assert len(notes) == (note is not None)
    assert all(note in what and count == 1 for what, count in notes.items())


def test_unknown_categories_and_images_are_dropped_and_named(tmp_path):
    assert one_box(tmp_path, [1, 1, 5, 5], category_id=99)[1] == {
        "whose category_id 99 is none of its categories, dropped": 1
    }
    assert one_box(tmp_path, [1, 1, 5, 5], image_id=float("nan"))[0] == []
    assert one_box(tmp_path, [1, 1, 5, 5], iscrowd=1)[0] == [[1, 1, 6, 6, 17, 1]]


def test_create_coco_label_gives_paths_and_rows(tmp_path):
    path = write_coco(tmp_path, coco_of(2))
    files, boxes = create_coco_label(True, load_config(instance_set=str(path)))
    assert files == [str(tmp_path / "train_0" / f"{i}.jpg") for i in range(2)]
    assert list(boxes) == files
    assert boxes[files[0]].dtype == np.int32 and boxes[files[0]].tolist() == [[4, 4, 24, 24, 17, 0]]


def without(key):
    return {name: value for name, value in coco_of(1).items() if name != key}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a json file"),
        ("{", "not a json file"),
        ("[" * 100000, "not a json file"),
        ("[1]", "a list where an object"),
        ("null", "NoneType where an object"),
        (without("images"), "no list 'images'"),
        (without("annotations"), "no list 'annotations'"),
        (without("categories"), "no list 'categories'"),
        ({**coco_of(1), "images": {}}, "a dict in place of the list 'images'"),
        ({**coco_of(1), "images": []}, "'images' is empty"),
        ({**coco_of(1), "images": [{"id": 1}]}, r"images\[0\] has no 'file_name'"),
        ({**coco_of(1), "images": [3]}, r"images\[0\] has no 'id'"),
        ({**coco_of(1), "annotations": [{}]}, r"annotations\[0\] has no 'image_id'"),
        ({**coco_of(1), "annotations": [{"image_id": []}]}, "expected a number or text"),
        ({**coco_of(1), "annotations": [{"image_id": 1, "category_id": []}]}, "'category_id'"),
        (
            {**coco_of(1), "annotations": [{"image_id": 1, "segments_info": []}]},
            r"COCO's panoptic labels: annotations\[0\] has segments_info .*; give the json with",
        ),
        ({**coco_of(1), "images": coco_of(1)["images"] * 2}, "id 1 occurs 2 times in 'images'"),
        ({**coco_of(1), "categories": [None]}, r"categories\[0\] has no 'id'"),
    ],
)
def test_what_is_not_coco_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "train_0.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        read_coco(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = tmp_path / "train_0.json"
    path.write_text(json.dumps(coco_of(2)), encoding="utf-8-sig")
    assert len(read_coco(path)["images"]) == 2


def test_a_name_that_no_file_can_have_is_a_missing_image(tmp_path):
    coco = coco_of(2)
    path = write_coco(tmp_path, coco)
    coco["images"][1]["file_name"] = "long" * 100
    path.write_text(json.dumps(coco))
    with pytest.raises(UserError, match=r"no such image \(1 of the 2 images"):
        load_labels(load_config(instance_set=str(path)))


def test_unreadable_json_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such COCO json"):
        read_coco(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_coco(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match="cannot be read as text"):
        read_coco(tmp_path / "binary.json")


def test_json_is_found_in_coco_root_then_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = write_coco(tmp_path, coco_of(1), "train_0.json")
    root = tmp_path / "root"
    config = load_config(instance_set="train_0.json", coco_root=str(root))
    assert find_json(config) == here
    there = write_coco(root, coco_of(1), "train_0.json")
    assert find_json(config) == there
    valid = write_coco(root, coco_of(1), "instances_val2017.json")
    named = load_config(instance_set="instances_{}.json", coco_root=str(root))
    assert find_json(named, is_training=False) == valid
    chosen = load_config(instance_set="x", coco_root=str(root), val_set="instances_val2017.json")
    assert find_json(chosen, is_training=False) == valid
    for name in ("none.json", "{odd} {0}.json", "{", "none_{}.json"):
        with pytest.raises(UserError, match="no such file"):
            find_json(load_config(instance_set=name))
    with pytest.raises(UserError, match="instance_set is empty"):
        find_json(load_config(instance_set=""))


def test_image_folders_in_their_order(tmp_path):
    path = tmp_path / "labels" / "train_0.json"
    config = load_config()
    recorded = {"image_dir": "../pictures"}
    assert image_folders(config, path, recorded) == [
        tmp_path / "labels" / "../pictures",
        tmp_path / "labels" / "train_0",
        tmp_path / "labels",
        tmp_path / "labels" / "images",
        tmp_path / "labels" / "train2017",
        tmp_path / "train2017",
    ]
    root = load_config(coco_root=str(tmp_path))
    assert image_folders(root, path, recorded, is_training=False) == [tmp_path / "val2017"]
    assert image_folders(load_config(image_dir="/x", coco_root="/y"), path, None)[0].name == "x"


def test_missing_images_are_counted_and_the_places_named(tmp_path):
    coco = coco_of(3)
    labels_of(tmp_path, coco)
    (tmp_path / "train_0" / "1.jpg").unlink()
    config = load_config(instance_set=str(tmp_path / "train_0.json"))
    with pytest.raises(UserError, match=r"1\.jpg: no such image \(1 of the 3 images"):
        load_labels(config)
    for number in (0, 2):
        (tmp_path / "train_0" / f"{number}.jpg").unlink()
    with pytest.raises(UserError, match="first 0.jpg") as error:
        load_labels(config)
    assert str(tmp_path / "train_0") in str(error.value) and "image_dir" in str(error.value)
