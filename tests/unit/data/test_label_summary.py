"""The summary that a silo gives away: what is in it, and what is refused of another silo's."""

import json
import re

import numpy as np
import pytest
from coco_files import coco_of, write_coco

from src.data.label_statistics import LabelStatistics, read_statistics
from src.data.label_summary import KEYS, read_summary, summary_of, write_summary
from src.errors import UserError


@pytest.fixture()
def labels():
    found = LabelStatistics(["rbc", "wbc"])
    found.add_image((640, 480), np.array([[5, 6, 50, 60, 1, 0], [9, 9, 99, 80, 2, 0]], np.float64))
    found.add_image((640, 480), np.zeros((0, 6)))
    return found


def test_a_written_summary_is_read_as_it_was(tmp_path, labels):
    write_summary(labels, tmp_path / "a.json")
    assert read_summary(tmp_path / "a.json") == labels


def test_a_summary_has_counts_and_class_names_and_nothing_else(tmp_path):
    coco = coco_of(3, [(4, 5, 20, 10)])
    for entry in coco["images"]:
        entry["file_name"] = f"patient_{entry['id']}_born_1970.jpg"
    coco["info"] = {"description": "clinic"}
    found, _ = read_statistics(write_coco(tmp_path / "private", coco))
    write_summary(found, tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    assert not re.search("patient|1970|clinic|private|jpg", text)
    content = json.loads(text)
    assert set(content) == set(KEYS)
    assert content.pop("classes") == ["person", "dog"]
    assert {type(v) for rows in content.pop("boxes").values() for row in rows for v in row} == {int}


def test_where_boxes_are_does_not_change_the_summary():
    near, far = LabelStatistics(["rbc"]), LabelStatistics(["rbc"])
    near.add_image((640, 480), np.array([[5, 6, 50, 60, 1, 0]], np.float64))
    far.add_image((640, 480), np.array([[205, 306, 250, 360, 1, 0]], np.float64))
    assert summary_of(near) == summary_of(far)


def test_sizes_are_coarse():
    one, other = LabelStatistics(["rbc"]), LabelStatistics(["rbc"])
    one.add_image((640, 480), np.array([[5, 6, 105, 106, 1, 0]], np.float64))
    other.add_image((639, 479), np.array([[5, 6, 106, 106, 1, 0]], np.float64))
    assert summary_of(one) == summary_of(other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other"}, "does not begin with"),
        ({"extra": 1}, "'extra' is not known"),
        ({"classes": "rbc"}, "classes is no list"),
        ({"classes": ["rbc", "RBC"]}, "differs from 'rbc' in case only"),
        ({"classes": ["rbc", "w\nbc"]}, "control characters"),
        ({"classes": ["rbc", ["wbc"]]}, "is no text"),
        ({"boxes": {"rbc": []}}, "does not have the names of classes"),
        ({"boxes": {"rbc": [[3, -20, 0, -1]], "wbc": []}}, "has -1, expected a whole number of 1"),
        ({"boxes": {"rbc": [[3, -20, 0, 1.5]], "wbc": []}}, "has 1.5"),
        ({"boxes": {"rbc": [[3, -20, 0, True]], "wbc": []}}, "has True"),
        ({"boxes": {"rbc": [[3, -20, 0, float("nan")]], "wbc": []}}, "has nan"),
        ({"boxes": {"rbc": [[3, -20, 0, 10**12]], "wbc": []}}, "has 1000000000000"),
        ({"boxes": {"rbc": [[3, 5, 0, 2]], "wbc": []}}, "has 5, expected a whole number of -128"),
        ({"boxes": {"rbc": [[3, -20, 2]], "wbc": []}}, "expected 4 numbers"),
        ({"boxes": {"rbc": [[3, -20, 0, 9]], "wbc": []}}, "boxes has 9 objects, and objects 2"),
        ({"boxes": {"rbc": [[3, -20, 0, 2]] * 10_001, "wbc": []}}, "no list of up to 10000"),
        ({"image_sizes": [[640, 480, 1]]}, "image_sizes has 1 images, and objects 2"),
        ({"image_sizes": [[2**40, 480, 2]]}, "expected a whole number of 32"),
        ({"objects": None}, "objects is no list"),
    ],
)
def test_what_is_no_summary_is_one_line(tmp_path, labels, change, words):
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps({**summary_of(labels), **change}))
    refused(path, words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Expecting value"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"format": ' + b"9" * 100_000 + b"}", "20 digits"),
        (b" " * (17 * 2**20), "more than 16777216 bytes"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (b"[]", "does not begin with"),
    ],
    ids=["empty", "deep", "long number", "too long", "no text", "a list"],
)
def test_what_is_no_json_is_one_line(tmp_path, content, words):
    path = tmp_path / "theirs.json"
    path.write_bytes(content)
    refused(path, words)


def test_a_missing_summary_is_named(tmp_path):
    refused(tmp_path / "none.json", "cannot be read: No such file")


def refused(path, words):
    with pytest.raises(UserError, match=re.escape(words)) as error:
        read_summary(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
