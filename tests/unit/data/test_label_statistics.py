"""Labels of every format as counts and histograms; those of several silos together."""

from pathlib import Path

import numpy as np
import pytest
from coco_files import coco_of, write_coco
from label_folders import voc_xml, write_files

from src.data.conversion import data_to_mindrecord_byte_image
from src.data.label_statistics import LabelStatistics, Shape, kind_of, merged, read_statistics
from src.errors import UserError
from src.model_utils.config import load_config

BOX = (4, 4, 20, 10)


def statistics_of(boxes, classes=("cell",), size=(64, 48)) -> LabelStatistics:
    """Statistics of one image."""
    found = LabelStatistics(list(classes))
    found.add_image(size, np.array(boxes, np.float64).reshape(-1, 6))
    return found


def coco_json(folder: Path, coco: dict) -> Path:
    return write_coco(folder, coco, "labels.json")


def test_a_box_is_counted_by_its_size_and_ratio_in_the_image():
    found = statistics_of([(0, 0, 8, 32, 1, 0)])
    # Area 16 * 16 of a longer side of 64: two octaves less; four times as high as wide.
    shape = Shape(aspect=round(np.log2(64 / 48) * 8), size=-16, ratio=8)
    assert found.boxes == {("cell", shape): 1}
    assert found.image_sizes == {(64, 64): 1}
    assert found.objects == {1: 1}


def test_crowds_are_no_objects():
    found = statistics_of([(0, 0, 8, 8, 1, 0), (0, 0, 30, 30, 1, 1)])
    assert found.objects == {1: 1}
    assert sum(found.boxes.values()) == 1


def test_all_formats_of_the_same_labels_give_the_same(tmp_path):
    coco = coco_of(1, [BOX])
    coco["categories"] = [{"id": 18, "name": "dog"}]
    coco["images"][0].update(width=48, height=32)
    json_path = coco_json(tmp_path / "coco", coco)
    image = (tmp_path / "coco" / "labels" / "0.jpg").read_bytes()
    voc = write_files(
        tmp_path / "voc",
        {"Annotations/0.xml": voc_xml("0.jpg", "dog", (5, 5, 24, 14)), "JPEGImages/0.jpg": image},
    )
    line = f"0 {14 / 48:.6f} {9 / 32:.6f} {20 / 48:.6f} {10 / 32:.6f}\n"
    yolo = write_files(
        tmp_path / "yolo", {"classes.txt": "dog\n", "images/0.jpg": image, "labels/0.txt": line}
    )
    config = load_config(
        num_classes=2,
        coco_classes=["background", "dog"],
        instance_set=str(json_path),
        mindrecord_dir=str(tmp_path / "mindrecord_0"),
    )
    data_to_mindrecord_byte_image(config, prefix="FasterRcnn.mindrecord", file_num=1)
    places = (json_path, voc, yolo, tmp_path / "mindrecord_0")
    assert [kind_of(path) for path in places] == ["coco", "voc", "yolo", "mindrecord"]
    first, *others = (read_statistics(path)[0] for path in places)
    assert first.by_class() == {"dog": 1}
    assert others == [first] * 3


def test_sizes_that_a_json_lacks_come_from_the_images(tmp_path):
    coco = coco_of(2, [BOX])
    known, _ = read_statistics(coco_json(tmp_path / "known", coco))
    for entry in coco["images"]:
        del entry["width"], entry["height"]
    found, _ = read_statistics(coco_json(tmp_path / "unknown", coco))
    assert found == known


def test_without_splits_the_training_images_are_read(tmp_path):
    files = {f"JPEGImages/{name}.jpg": None for name in "abc"}
    files |= {f"Annotations/{name}.xml": voc_xml(f"{name}.jpg") for name in "abc"}
    files |= {"ImageSets/Main/train.txt": "a\nb\n", "ImageSets/Main/val.txt": "c\n"}
    folder = write_files(tmp_path, files)
    found, notes = read_statistics(folder)
    assert (found.images, notes[0]) == (2, "splits that were read: train")
    assert read_statistics(folder, splits="train,val")[0].images == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"annotations": []}, "no object in the labels of 2 images"),
        ({"categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "Dog"}]}, "'Dog' differs"),
        ({"categories": [{"id": 18, "name": "background"}]}, "the background's"),
        ({"categories": [{"id": 18, "name": "a\x1b[2J"}]}, "control characters"),
        ({"categories": [{"id": 18, "name": 5}]}, "is no text"),
        ({"categories": []}, "0 classes, expected 1 to"),
    ],
)
def test_labels_that_say_nothing_are_one_error(tmp_path, change, words):
    path = coco_json(tmp_path, {**coco_of(2), **change})
    with pytest.raises(UserError, match=words) as error:
        read_statistics(path)
    assert str(path) in str(error.value)


def test_a_missing_source_says_what_may_be_given(tmp_path):
    with pytest.raises(UserError, match=r"--source .*nothing: not there; give a COCO json"):
        read_statistics(tmp_path / "nothing")


def random_silo(seed: int, classes=("rbc", "wbc"), count: int = 5) -> LabelStatistics:
    rng = np.random.default_rng(seed)
    found = LabelStatistics(list(classes))
    for _ in range(count):
        corners = rng.uniform(0, 200, (rng.integers(0, 9), 2))
        ends = corners + rng.uniform(3, 90, corners.shape)
        number = rng.integers(1, len(classes) + 1, len(corners))
        rows = np.column_stack([corners, ends, number, np.zeros(len(corners))])
        found.add_image((int(rng.integers(290, 640)), 300), rows)
    return found


def test_merged_silos_are_the_statistics_of_all_their_images():
    whole = random_silo(1)
    parts = [LabelStatistics(["rbc", "wbc"]) for _ in range(2)]
    rng = np.random.default_rng(1)
    for number in range(5):
        corners = rng.uniform(0, 200, (rng.integers(0, 9), 2))
        ends = corners + rng.uniform(3, 90, corners.shape)
        classes = rng.integers(1, 3, len(corners))
        rows = np.column_stack([corners, ends, classes, np.zeros(len(corners))])
        parts[number % 2].add_image((int(rng.integers(290, 640)), 300), rows)
    assert merged(parts) == whole


@pytest.mark.parametrize(
    ("lists", "together"),
    [
        ([["b", "a"], ["b", "a"]], ["b", "a"]),  # the agreed order is kept
        ([["a"], ["c", "a", "b"]], ["c", "a", "b"]),  # one list has all
        ([["b", "a"], ["a", "b"]], ["a", "b"]),  # no agreed order: sorted
        ([["z", "a"], ["m"]], ["a", "m", "z"]),
    ],
)
def test_the_classes_of_silos_do_not_depend_on_their_order(lists, together):
    silos = [random_silo(number, names) for number, names in enumerate(lists)]
    assert merged(silos).classes == together
    assert merged(silos[::-1]) == merged(silos)


def test_names_of_two_silos_that_differ_in_case_are_an_error_with_both():
    with pytest.raises(UserError, match="'rbc' differs from 'RBC' in case only"):
        merged([random_silo(0, ["RBC"]), random_silo(1, ["rbc"])])
