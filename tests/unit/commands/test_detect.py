"""Detection on image files: the boxes of the evaluation, ids, broken images."""

import io
import json

import mindspore as ms
import numpy as np
import pytest
from coco_files import coco_of, jpeg, write_coco
from commands import TINY, refused, run, succeed
from evaluation_sets import tiny
from PIL import Image

from src.commands.detect import json_ids
from src.data.image_check import ORIENTATION
from src.errors import UserError
from src.evaluation.image_files import find_images
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet
from src.reporting.detections import read_pictures


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A checkpoint, five images and their json, whose ids are not their places."""
    folder = tmp_path_factory.mktemp("case")
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.save_checkpoint(Faster_Rcnn_Resnet(tiny(seed=3)), str(folder / "net.ckpt"))
    coco = coco_of(5)
    for entry in coco["images"] + coco["annotations"]:
        key = "id" if "file_name" in entry else "image_id"
        entry[key] *= 100
    coco["categories"] = [{"id": 18, "name": "pizza"}, {"id": 7, "name": "book"}]
    write_coco(folder, coco, "val.json")
    return folder


def detect(folder, *words, call=succeed):
    flags = [f"--config_path={TINY}", "--checkpoint=net.ckpt", "--test_score_thr=0.1", *words]
    return call(folder, "tools/detect.py", *flags)


def read(path):
    return json.loads(path.read_text())


def test_the_same_boxes_as_the_evaluation(case):
    said = detect(case, "--images", "val", "--json=val.json", "--out=with_json", "--no_pictures")
    assert said.splitlines()[-1].startswith("5 images: ")
    words = [f"--config_path={TINY}", "--checkpoint=net.ckpt", "--test_score_thr=0.1"]
    succeed(case, "tools/evaluate.py", *words, "--json=val.json", "--results=found.json")
    evaluated = read(case / "found.json")
    assert len(evaluated) > 20 and {e["category_id"] for e in evaluated} == {18, 7}
    assert read(case / "with_json" / "detections.json") == evaluated
    files = {p.name for p in (case / "with_json").iterdir()}
    assert files == {"detections.json", "images.json"}


def test_images_count_from_one_and_broken_ones_are_left_out(case):
    folder = case / "some"
    folder.mkdir()
    for number, name in enumerate(["b.jpg", "a.jpg", "d.JPG"]):
        (folder / name).write_bytes(jpeg(number))
    (folder / "c.jpg").write_bytes(jpeg(7)[:1000])
    (folder / "notes.txt").write_text("no image")
    (folder / "e.webp").write_bytes(b"RIFF")
    done = detect(case, "--images", "some", "--out=numbered", "--score=0.2", call=run)
    assert done.returncode == 0, done.stderr
    assert "warning: some/c.jpg left out: a JPEG that is cut off" in done.stderr
    assert "some: left out 1 images of other formats, first e.webp: convert them" in done.stderr
    assert "3 images, 1 left out: " in done.stdout
    out = case / "numbered"
    listed = {entry["id"]: entry["file_name"] for entry in read(out / "images.json")["images"]}
    assert listed == {1: str(folder / "a.jpg"), 2: str(folder / "b.jpg"), 4: str(folder / "d.JPG")}
    found = read(out / "detections.json")
    assert {entry["image_id"] for entry in found} <= set(listed)
    assert {p.name for p in out.glob("*.png")} == {
        "a_1.png", "b_2.png", "d_4.png", "contact_sheet.png"
    }  # fmt: skip
    pictures = read_pictures(out / "images.json", out / "detections.json", "", 0.0, 9)
    assert sum(len(p.detections) for p in pictures) == len(found) > 20
    assert [p.path.name for p in pictures] == ["a.jpg", "b.jpg", "d.JPG"]


@pytest.mark.slow
def test_boxes_on_a_photo_are_where_it_is_shown_and_as_a_json_has_it(case):
    folder = case / "photos"
    folder.mkdir()
    image = Image.open(io.BytesIO(jpeg(1)))
    for number, orientation in enumerate([1, 3, 6]):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        image.save(folder / f"{number}.jpg", quality=95, exif=exif)
    detect(case, "--images", "photos", "--out=shown", "--score=0.1")
    results, listed = read(case / "shown" / "detections.json"), read(case / "shown" / "images.json")
    assert [(e["width"], e["height"]) for e in listed["images"]] == [(48, 32), (48, 32), (32, 48)]
    plain, upside_down, on_its_side = (
        np.array([e["bbox"] for e in results if e["image_id"] == id_]) for id_ in (1, 2, 3)
    )
    x, y, w, h = plain.T
    np.testing.assert_allclose(upside_down, np.stack([48 - x - w, 32 - y - h, w, h], 1), atol=1e-3)
    np.testing.assert_allclose(on_its_side, np.stack([32 - y - h, x, h, w], 1), atol=1e-3)
    out = case / "shown"
    assert Image.open(out / "2_3.png").height > Image.open(out / "0_1.png").height
    pictures = read_pictures(out / "images.json", out / "detections.json", "", 0.0, 9)
    assert [p.turned for p in pictures] == [False, True, True]
    coco = coco_of(3)
    coco["categories"] = [{"id": 18, "name": "pizza"}, {"id": 7, "name": "book"}]
    (case / "photos.json").write_text(json.dumps(coco))
    detect(case, "--images", "photos", "--json=photos.json", "--out=stored", "--no_pictures")
    stored = read(case / "stored" / "detections.json")
    first, third = ([e["bbox"] for e in stored if e["image_id"] == id_] for id_ in (1, 3))
    assert first == third and len(first) > 2


def test_no_image_that_can_be_read(case):
    (case / "broken.jpg").write_bytes(b"")
    done = detect(case, "--images", "broken.jpg", "--out=nothing", call=run)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: none of the 1 images can be read, as said above"
    assert not list((case / "nothing").iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--images", "gone"), "--images gone: no such file or folder"),
        (("--images", "val", "--score=2"), "--score 2.0: expected 0 to 1"),
        (("--images", "net.ckpt", "--json=val.json"), "has no image named net.ckpt"),
        ((), "--images"),
    ],
)
def test_what_is_refused(case, words, message):
    assert message in detect(case, *words, call=refused)


def names(folder, *listed):
    """A json whose images have these names and the ids 11, 12, ..."""
    images = [{"id": id_, "file_name": name} for id_, name in enumerate(listed, 11)]
    path = folder / "names.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    return path


def placed(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(jpeg())
    return [folder / path for path in paths]


@pytest.mark.parametrize(
    "listed",
    [
        ("v1/f.jpg", "v2/f.jpg"),
        ("v1\\f.jpg", "v2\\f.jpg"),
        ("/home/of others/v1/f.jpg", "C:\\data\\v2\\f.jpg"),
        ("./v1//f.jpg", "../media/v2/f.jpg"),
        ("v1/f.jpg", "a/v2/f.jpg", "b/v2/g.jpg", "a/v1/f.jpg"),
        ("a/v1/f.jpg", "f.jpg", "v3/f.jpg"),
    ],
)
def test_images_of_one_name_get_the_id_of_the_longest_common_end(tmp_path, listed):
    paths = placed(tmp_path, "v1/f.jpg", "v2/f.jpg")
    assert list(json_ids(names(tmp_path, *listed), paths).items()) == [
        (paths[0], 11),
        (paths[1], 12),
    ]


def test_paths_with_dots_links_and_from_within_the_folder_are_the_same_image(tmp_path, monkeypatch):
    placed(tmp_path, "v1/f.jpg", "v2/f.jpg")
    (tmp_path / "photos").symlink_to(tmp_path / "v2")
    json_path = names(tmp_path, "v1/f.jpg", "v2/f.jpg")
    monkeypatch.chdir(tmp_path / "v2")
    for name in ("f.jpg", "../v1/../v2/f.jpg", "../photos/f.jpg"):
        assert list(json_ids(json_path, find_images([name], "--images")).values()) == [12]
    once = find_images([".", "f.jpg", "../v2/f.jpg", tmp_path / "v2" / "f.jpg"], "--images")
    assert [path.as_posix() for path in once] == ["f.jpg"]


def test_images_that_only_their_name_finds_are_said(tmp_path, capsys):
    (path,) = placed(tmp_path, "photos/f.jpg")
    assert json_ids(names(tmp_path, "train/f.jpg"), [path]) == {path: 11}
    said = capsys.readouterr().err
    assert said.startswith("note: 1 images are in other folders than the json says, ")
    assert said.endswith(f": {path} as train/f.jpg\n")
    assert json_ids(names(tmp_path, "f.jpg"), [path]) == {path: 11}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (("v3/f.jpg", "v4/f.jpg"), r"v1/f.jpg may be v3/f.jpg .id 11., v4/f.jpg .id 12.; give it"),
        (
            ("v1/f.jpg", "v2/f.jpg", "v1\\f.jpg"),
            r"v1/f.jpg may be v1/f.jpg .id 11., v1/f.jpg .id 13.",
        ),
        (("v1/f.jpg",), r"v1/f.jpg and .*v2/f.jpg may both be v1/f.jpg .id 11.; give one of them"),
        (("f.jpg",), r"v1/f.jpg and .*v2/f.jpg may both be f.jpg .id 11."),
        (("v1/F.JPG",), r"has no image named f.jpg, only 'F.JPG': rename one of the two"),
        (("g.jpg",), r"has no image named f.jpg .2 of 2 are missing.; leave --json out"),
    ],
)
def test_images_that_the_json_does_not_tell_apart_are_refused(tmp_path, listed, message):
    paths = placed(tmp_path, "v1/f.jpg", "v2/f.jpg")
    with pytest.raises(UserError, match=message):
        json_ids(names(tmp_path, *listed), paths)


@pytest.mark.slow
def test_images_of_one_name_with_ids_that_are_text(case):
    coco = coco_of(2)
    ids = ["9f1c-aa", "9f1c bb"]
    for number, entry in enumerate(coco["images"]):
        entry.update(id=ids[number], file_name=f"v{number}\\frame.jpg")
        placed(case, f"v{number}/frame.jpg")[0].write_bytes(jpeg(number))
    for number, entry in enumerate(coco["annotations"]):
        entry["image_id"] = ids[number]
    coco["categories"] = [{"id": "d", "name": "pizza"}, {"id": 7, "name": "book"}]
    (case / "clips.json").write_text(json.dumps(coco))
    detect(case, "--images", "v0", "v1", "--json=clips.json", "--out=clips")
    out = case / "clips"
    found = read(out / "detections.json")
    assert {entry["image_id"] for entry in found} == set(ids)
    assert [entry["id"] for entry in read(out / "images.json")["images"]] == ids
    pictures = {"frame_9f1c-aa.png", "frame_9f1c_bb.png", "contact_sheet.png"}
    assert {path.name for path in out.glob("*.png")} == pictures
    flags = ("--json=clips/images.json", "--results=clips/detections.json", "--out=shown")
    words = ("--score=0.1", "--image_ids", "9f1c bb")
    printed = succeed(case, "tools/show_detections.py", *flags, *words).splitlines()
    assert [line.rsplit("/", 1)[1] for line in printed] == [
        "frame_9f1c_bb.png",
        "contact_sheet.png",
    ]
