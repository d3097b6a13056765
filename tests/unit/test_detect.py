"""Detection on image files: the boxes of the evaluation, ids, broken images."""

import json

import mindspore as ms
import pytest
from coco_files import coco_of, jpeg, write_coco
from commands import TINY, refused, run, succeed
from evaluation_sets import tiny

from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet
from src.reporting.detection_results import read_pictures


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
    done = detect(case, "--images", "some", "--out=numbered", "--score=0.2", call=run)
    assert done.returncode == 0, done.stderr
    assert "warning: some/c.jpg left out: a JPEG that is cut off" in done.stderr
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
