"""Images with ground truth and detections: which are read, in which order, what is refused."""

import json
import struct
import zlib

import cv2
import numpy as np
import pytest
from coco_files import coco_of, write_coco
from commands import refused, succeed
from PIL import Image

from src.errors import UserError
from src.reporting.detections import Box, read_pictures
from src.reporting.pictures import picture_of


def detection(image_id=1, score=0.9, category_id=18, bbox=(4, 4, 20, 20)):
    return {
        "image_id": image_id, "category_id": category_id, "bbox": list(bbox), "score": score
    }  # fmt: skip


def write_pair(folder, results, count=3):
    """A COCO json of `count` images and a result json; returns both paths."""
    json_path = write_coco(folder, coco_of(count), "val.json")
    path = folder / "results.json"
    path.write_text(json.dumps(results))
    return json_path, path


def test_detections_are_those_above_the_score_best_first(tmp_path):
    results = [detection(score=0.3), detection(score=0.6), detection(score=0.9), detection(2)]
    first, second = read_pictures(*write_pair(tmp_path, results), "", 0.5, 3)
    assert [box.score for box in first.detections] == [0.9, 0.6]
    assert len(second.detections) == 1
    assert first.truth == [Box(1, "dog", (4.0, 4.0), (20.0, 20.0), outcome="found")]
    assert [box.outcome for box in first.detections] == ["found", "false"]
    assert first.path == tmp_path / "val" / "0.jpg"


def test_images_with_the_most_errors_come_first(tmp_path):
    far = detection(3, bbox=(40, 4, 20, 20))
    low = detection(4, score=0.4, bbox=(40, 4, 20, 20))
    paths = write_pair(tmp_path, [detection(1), far, detection(4), low, detection(5)], count=5)
    assert [p.image_id for p in read_pictures(*paths, "", 0.5, 3)] == [3, 2, 1]
    assert [p.image_id for p in read_pictures(*paths, "", 0.3, 3)] == [3, 2, 4]


def test_an_object_of_another_class_is_missed_and_its_detection_false(tmp_path):
    json_path, results = write_pair(tmp_path, [detection(category_id=1)], 1)
    coco = json.loads(json_path.read_text())
    coco["categories"] = [{"id": 1, "name": "cat"}, {"id": 18, "name": "dog"}]
    json_path.write_text(json.dumps(coco))
    (picture,) = read_pictures(json_path, results, "", 0.5, 1)
    assert [(box.outcome, box.other) for box in picture.boxes] == [
        ("missed", "cat"),
        ("false", "dog"),
    ]


def test_a_detection_of_a_crowd_and_the_crowd_are_no_errors(tmp_path):
    json_path, results = write_pair(tmp_path, [detection(), detection(2, 0.1)], 2)
    coco = json.loads(json_path.read_text())
    coco["annotations"][0].update(iscrowd=1)
    json_path.write_text(json.dumps(coco))
    second, first = read_pictures(json_path, results, "", 0.5, 2)
    assert (first.image_id, [box.outcome for box in first.boxes]) == (1, ["", ""])
    assert first.truth[0].crowd and second.truth[0].outcome == "missed"


def test_detections_of_a_json_without_labels_are_not_called_false(tmp_path):
    json_path, results = write_pair(tmp_path, [detection(7)], count=10)
    json_path.write_text(json.dumps({**coco_of(10), "annotations": []}))
    pictures = read_pictures(json_path, results, "", 0.5, 3)
    assert [p.image_id for p in pictures] == [1, 3, 5]
    (seventh,) = read_pictures(json_path, results, "", 0.5, 3, [7])
    assert seventh.truth is None and [box.outcome for box in seventh.detections] == [""]


def test_a_label_without_an_area_is_not_drawn(tmp_path):
    json_path, results = write_pair(tmp_path, [detection()], 1)
    coco = json.loads(json_path.read_text())
    coco["annotations"].append({**coco["annotations"][0], "id": 99, "bbox": [4, 4, 0, 20]})
    json_path.write_text(json.dumps(coco))
    (picture,) = read_pictures(json_path, results, "", 0.5, 1)
    assert len(picture.truth) == 1


def test_images_are_those_asked_for(tmp_path):
    paths = write_pair(tmp_path, [], count=10)
    assert [p.image_id for p in read_pictures(*paths, "", 0.5, 99)] == list(range(1, 11))
    assert [p.image_id for p in read_pictures(*paths, "", 0.5, 5, [7, 2, 7])] == [7, 2]


@pytest.mark.parametrize(
    ("ids", "asked", "found"),
    [
        (["a-1", "b 2", "c"], ["c", "a-1"], ["c", "a-1"]),
        ([7, "7", 1.5], ["7", "1.5", "7"], [7, "7", 1.5]),
        ([-3, 10**20, 0], ["-3", str(10**20)], [-3, 10**20]),
    ],
)
def test_images_are_asked_for_by_ids_of_any_kind(tmp_path, ids, asked, found):
    json_path, results = write_pair(tmp_path, [])
    coco = coco_of(3)
    for entry, id_ in zip(coco["images"], ids):
        entry["id"] = id_
    json_path.write_text(json.dumps({**coco, "annotations": []}))
    assert [p.image_id for p in read_pictures(json_path, results, "", 0.5, 3, asked)] == found


def test_images_behind_those_that_were_evaluated_are_not_chosen(tmp_path):
    paths = write_pair(tmp_path, [detection(2), detection(4)], count=10)
    assert [p.image_id for p in read_pictures(*paths, "", 0.5, 9)] == [1, 3, 2, 4]


def test_of_folders_with_the_same_file_names_that_of_the_jsons_name_counts(tmp_path):
    annotations = tmp_path / "annotations"
    json_path = write_coco(annotations, coco_of(2), "instances_val2017.json")
    for name in ("train2017", "val2017"):
        (tmp_path / name).mkdir()
        for image in (annotations / "instances_val2017").iterdir():
            (tmp_path / name / image.name).write_bytes(image.read_bytes())
    for image in (annotations / "instances_val2017").iterdir():
        image.unlink()
    (tmp_path / "results.json").write_text("[]")
    picture, _ = read_pictures(json_path, tmp_path / "results.json", "", 0.5, 2)
    assert picture.path.parent == tmp_path / "val2017"


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({}, "a dict where COCO's result format is a list"),
        ([detection(), {"image_id": 1}], "entry 1: has no 'category_id'"),
        ([detection(), 7], "entry 1: has no 'image_id'"),
        ([detection(bbox=[1, 2, 3])], "entry 0: bbox is"),
        ([detection(bbox=[1, 2, float("nan"), 3])], "four finite numbers"),
        ([detection(score="high")], "entry 0: score is 'high'"),
        ([detection(), detection(99)], "1 of 2 detections have another image_id"),
        ([detection([1])], "another image_id"),
        ([detection(category_id=3)], "another category_id"),
    ],
)
def test_results_of_another_shape_or_another_json_are_refused(tmp_path, results, message):
    with pytest.raises(UserError, match=message) as refusal:
        read_pictures(*write_pair(tmp_path, results), "", 0.5, 3)
    assert "results.json" in str(refusal.value)


def test_images_that_are_unknown_or_not_there_are_named(tmp_path):
    paths = write_pair(tmp_path, [])
    with pytest.raises(UserError, match=r"--image_ids: .*val.json has no image with id 9; its 3"):
        read_pictures(*paths, "", 0.5, 3, [9])
    (tmp_path / "val" / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"1.jpg: no such image \(1 of the 3 to draw"):
        read_pictures(*paths, "", 0.5, 3)
    assert len(read_pictures(*paths, "", 0.5, 3, [1, 3])) == 2
    second = tmp_path / "val" / "2.jpg"
    second.write_bytes(b"no image")
    (broken,) = read_pictures(*paths, "", 0.5, 3, [3])
    with pytest.raises(UserError, match="2.jpg: cannot be read as a JPEG or PNG"):
        picture_of(broken, 0.5)
    Image.new("RGB", (40, 30)).save(second, "WEBP")
    with pytest.raises(UserError, match="2.jpg: cannot be read as a JPEG or PNG"):
        picture_of(broken, 0.5)


def test_the_command_writes_a_picture_for_each_image_and_a_sheet(tmp_path):
    write_pair(tmp_path, [detection()])
    flags = ("--json=val.json", "--results=results.json", "--out=out")
    images = ("--image_ids", "1", "2")
    printed = succeed(tmp_path, "tools/show_detections.py", *flags, *images).split()
    names = ["0_1.png", "1_2.png", "contact_sheet.png"]
    assert printed == [str(tmp_path / "out" / name) for name in names]
    for path in printed:
        Image.open(path).verify()
    line = refused(tmp_path, "tools/show_detections.py", *flags, "--image_ids", "77")
    assert "no image with id 77" in line


def test_an_image_that_claims_too_many_pixels_is_not_decoded(tmp_path):
    paths = write_pair(tmp_path, [])
    png = cv2.imencode(".png", np.zeros((8, 8), np.uint16))[1].tobytes()
    head = b"IHDR" + struct.pack(">II", 20000, 20000) + png[24:29]
    image = tmp_path / "val" / "2.jpg"
    image.write_bytes(png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:])
    (claims,) = read_pictures(*paths, "", 0.5, 3, [3])
    with pytest.raises(UserError, match="20000x20000 pixels, and at most 178,000,000 are drawn"):
        picture_of(claims, 0.5)
