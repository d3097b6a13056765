"""Ground truth and detections on images: what is drawn where, and what is refused."""

import json
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from coco_files import coco_of, write_coco
from commands import refused, succeed
from matplotlib.colors import to_rgb
from PIL import Image

from src.errors import UserError
from src.reporting.detections import (
    Box,
    LabelledPicture,
    PictureNames,
    contact_sheet,
    picture_of,
    read_pictures,
)
from src.reporting.plots import colour


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
    assert first.truth == [Box(1, "dog", (4.0, 4.0), (20.0, 20.0))]
    assert first.path == tmp_path / "val" / "0.jpg"


def test_images_are_spread_over_the_json_or_those_asked_for(tmp_path):
    paths = write_pair(tmp_path, [], count=10)
    assert [p.image_id for p in read_pictures(*paths, "", 0.5, 5)] == [1, 3, 5, 7, 9]
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


def test_no_two_pictures_have_one_name():
    pairs = [("v1/f.jpg", 1), ("v2/f.jpg", "1"), ("f.png", 1.0), ("f_1.jpg", 2), ("f.jpg", "1_2")]
    pairs += [("contact.jpg", "sheet"), ("x.jpg", "a/b"), ("x.jpg", "a b"), ("X.jpg", "A b")]
    pairs += [("图" * 80 + ".jpg", 1), ("图" * 80 + ".png", 1), ("a.jpg", "9" * 300)]
    names = PictureNames()
    given = [names.name_of(LabelledPicture(id_, Path(name))) for name, id_ in pairs]
    assert given[:5] == ["f_1.png", "f_1_2.png", "f_1_0.png", "f_1_2_2.png", "f_1_2_3.png"]
    assert len({name.casefold() for name in [*given, "contact_sheet.png"]}) == len(pairs) + 1
    assert max(len(name.encode()) for name in given) < 200


def test_images_behind_those_that_were_evaluated_are_not_chosen(tmp_path):
    paths = write_pair(tmp_path, [detection(2), detection(4)], count=10)
    assert [p.image_id for p in read_pictures(*paths, "", 0.5, 4)] == [1, 2, 3, 4]


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


def coloured(image, tone):
    """(height, width) bool: pixels of about this colour."""
    wanted = np.array(to_rgb(tone)) * 255
    return np.abs(np.asarray(image).astype(int) - wanted).max(axis=2) < 12


def test_a_frame_is_drawn_where_the_box_is_and_a_detections_is_broken(tmp_path):
    path = tmp_path / "grey.png"
    Image.new("RGB", (200, 100), (128, 128, 128)).save(path)
    box = {"category": 0, "name": "dog", "corner": (50.0, 40.0), "size": (80.0, 40.0)}
    picture = LabelledPicture(1, path, [Box(**box)], [Box(**box, score=0.75)])
    left, right = np.array_split(coloured(picture_of(picture, 0.5), colour(0)), 2, axis=1)
    # The panel is 200 pixels of the image wide and begins below the titles.
    scale = left.shape[1] / 200
    top = left.shape[0] - 100 * scale
    y = int(top + 60 * scale)
    for panel in (left, right):
        columns = np.flatnonzero(panel[y - 20 : y + 20].any(axis=0)) / scale
        assert np.abs(columns - 50).min() < 3 and np.abs(columns - 130).min() < 3
        assert not ((columns > 60) & (columns < 120)).any()
    edge = slice(int(47 * scale), int(53 * scale))
    covered = [panel[y - 25 : y + 25, edge].any(axis=1).mean() for panel in (left, right)]
    assert covered[0] == 1 and 0.3 < covered[1] < 1


def test_names_with_dollar_signs_are_no_formulas(tmp_path):
    path = tmp_path / "a$x$ $.png"
    Image.new("RGB", (60, 90)).save(path)
    box = Box(0, "$\\frac$ _", (5.0, 5.0), (300.0, 20.0), crowd=True)
    assert picture_of(LabelledPicture(1, path, [box]), 0.5, overlay=True).size[1] > 90


def test_a_contact_sheet_holds_images_of_any_shape():
    sheet = contact_sheet([Image.new("RGB", size, "red") for size in ((90, 30), (30, 90), (9, 9))])
    assert sheet.size == (1800, 2700 + 900)
    assert contact_sheet([Image.new("RGB", (90, 30))]).size == (900, 300)


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
