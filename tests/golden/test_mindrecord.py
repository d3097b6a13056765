"""Rows of the written MindRecord against the recorded ones."""

import hashlib
import json
from pathlib import Path

import mindspore.dataset as ds
import numpy as np
import pytest

from src.dataset import check_mindrecord, data_to_mindrecord_byte_image
from src.model_utils.config import load_config

GOLDEN = Path(__file__).parent / "mindrecord"
RECORDED = json.loads((GOLDEN / "expected_rows.json").read_text())


def read_rows(file):
    data = ds.MindDataset(str(file), columns_list=["image", "annotation"], shuffle=False)
    return list(data.create_dict_iterator(num_epochs=1, output_numpy=True))


def assert_recorded_rows(rows):
    assert len(rows) == RECORDED["dataset_size"]
    for found, recorded in zip(rows, RECORDED["rows_in_file_order"]):
        assert found["image"].dtype == recorded["image_dtype"]
        assert hashlib.md5(found["image"].tobytes()).hexdigest() == recorded["image_md5"]
        assert found["annotation"].dtype == recorded["annotation_dtype"]
        assert found["annotation"].tolist() == recorded["annotation"]


def config_for(folder, **changes):
    assert load_config().coco_classes == RECORDED["coco_classes_used"]
    source = {"instance_set": str(GOLDEN / "train_0.json"), "mindrecord_dir": str(folder)}
    return load_config(**{**source, **changes})


def write(config, file_num=1):
    return data_to_mindrecord_byte_image(config, "coco", True, "FasterRcnn.mindrecord", file_num)


def test_rows_files_and_count(tmp_path):
    folder = tmp_path / "a b" / "mindrecord_0"
    summary = write(config_for(folder))
    assert sorted(path.name for path in folder.iterdir()) == RECORDED["files_written"]
    assert_recorded_rows(read_rows(folder / "FasterRcnn.mindrecord"))
    assert check_mindrecord(folder / "FasterRcnn.mindrecord") == RECORDED["dataset_size"]
    assert (summary.images, summary.boxes, summary.skipped) == (5, 5, [])
    assert sum(summary.notes.values()) == 1 and "unicorn" in next(iter(summary.notes))


def test_writing_again_replaces(tmp_path):
    for _ in range(2):
        write(config_for(tmp_path / "mindrecord_0"))
    assert_recorded_rows(read_rows(tmp_path / "mindrecord_0" / "FasterRcnn.mindrecord"))


def test_original_layout_with_coco_root_and_braces(tmp_path):
    root = tmp_path / "{odd} {}"
    (root / "annotations").mkdir(parents=True)
    labels = (GOLDEN / "train_0.json").read_bytes()
    (root / "annotations" / "instances_train2017.json").write_bytes(labels)
    (root / "train2017").symlink_to(GOLDEN / "train_0")
    config = config_for(
        root / "mindrecord_3", instance_set="annotations/instances_{}.json", coco_root=str(root)
    )
    write(config)
    assert_recorded_rows(read_rows(root / "mindrecord_3" / "FasterRcnn.mindrecord"))


def test_several_files_hold_the_same_rows(tmp_path):
    folder = tmp_path / "mindrecord_0"
    write(config_for(folder), file_num=2)
    assert len(list(folder.iterdir())) == 4
    first = folder / "FasterRcnn.mindrecord0"
    assert check_mindrecord(first) == RECORDED["dataset_size"]
    found = {hashlib.md5(row["image"].tobytes()).hexdigest() for row in read_rows(first)}
    assert found == {row["image_md5"] for row in RECORDED["rows_in_file_order"]}


@pytest.mark.parametrize("fields", [5, 6])
def test_text_labels_give_the_same_rows(tmp_path, fields):
    rows = RECORDED["rows_in_file_order"]
    lines = []
    for row in rows:
        boxes = [box for box in row["annotation"] if box[2] > 0]
        words = [",".join(str(value) for value in box[:fields]) for box in boxes]
        lines.append(" ".join([row["file_name"], *words]))
    (tmp_path / "labels.txt").write_text("\n".join(lines) + "\n")
    config = config_for(
        tmp_path / "mindrecord_0",
        dataset="other",
        image_dir=str(GOLDEN / "train_0"),
        anno_path=str(tmp_path / "labels.txt"),
    )
    data_to_mindrecord_byte_image(config, "other", True, "FasterRcnn.mindrecord", 1)
    for found, row in zip(read_rows(tmp_path / "mindrecord_0" / "FasterRcnn.mindrecord"), rows):
        np.testing.assert_array_equal(
            found["annotation"][:, :fields], np.array(row["annotation"])[:, :fields]
        )
