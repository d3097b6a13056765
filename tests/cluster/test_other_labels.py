"""Two silos train together on the real engine: one has text labels, the other Pascal VOC's."""

import json
import re
from pathlib import Path

import pytest
from commands import TINY, succeed
from launched_job import CONFIG, Job

from src.model_utils.config import load_config

pytestmark = pytest.mark.slow  # conversions and a whole job: half a minute and more

TRAIN = "coco/annotations/instances_train2017.json"


def write_text_labels(folder, coco, images):
    """Lines with 5 and 6 fields, a name with spaces, a box beyond the image, class 9."""
    index = {name: number for number, name in enumerate(load_config(TINY).coco_classes)}
    names = {entry["id"]: entry["name"] for entry in coco["categories"]}
    lines = []
    for number, image in enumerate(coco["images"][:6]):
        name = f"photo {number}.jpg"
        (folder / name).write_bytes((images / image["file_name"]).read_bytes())
        boxes = [
            [*a["bbox"], index[names[a["category_id"]]]]
            for a in coco["annotations"]
            if a["image_id"] == image["id"] and names[a["category_id"]] in index
        ]
        words = [f"{x:g},{y:g},{x + w:g},{y + h:g},{c}" for x, y, w, h, c in boxes]
        lines.append(" ".join([name, *(f"{w},0" if number % 2 else w for w in words)]))
    lines[0] += " -5,-5,4000,20,1 1,1,9,9,9"
    (folder / "labels.txt").write_text("\n".join(lines) + "\n")


def write_voc(folder, coco, images):
    """XML files next to the images."""
    names = {entry["id"]: entry["name"] for entry in coco["categories"]}
    for image in coco["images"][6:]:
        (folder / image["file_name"]).write_bytes((images / image["file_name"]).read_bytes())
        objects = "".join(
            "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
            "<ymax>{}</ymax></bndbox></object>".format(
                names[a["category_id"]], a["bbox"][0] + 1, a["bbox"][1] + 1,
                a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3],
            )
            for a in coco["annotations"]
            if a["image_id"] == image["id"]
        )  # fmt: skip
        path = folder / image["file_name"]
        path.with_suffix(".xml").write_text(f"<annotation>{objects}</annotation>")


def test_silos_with_text_and_voc_labels_train_together(tmp_path):
    succeed(tmp_path, "tools/make_demo_coco.py", "--out=coco", "--images=12", "--val_images=2")
    coco = json.loads((tmp_path / TRAIN).read_text())
    for name, write in (("text", write_text_labels), ("voc", write_voc)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, coco, tmp_path / "coco" / "train2017")
    generate = ["generate_mindrecord.py", CONFIG]
    said = succeed(
        tmp_path, *generate, "--dataset=other", "--image_dir=text", "--anno_path=text/labels.txt",
        "--mindrecord_dir=shards/mindrecord_0",
    )  # fmt: skip
    assert "6 images" in said and "1 partly outside the image, clipped" in said
    assert "1 of class 9, not that of an object in coco_classes, dropped" in said
    succeed(tmp_path, "tools/convert_labels.py", "--from=voc", "--source=voc", f"--classes={TINY}")
    said = succeed(
        tmp_path, *generate, "--instance_set=datasets/all.json",
        "--mindrecord_dir=shards/mindrecord_1",
    )  # fmt: skip
    assert "6 images" in said

    with Job(tmp_path, Path("shards")) as job:
        job.write(1)
        job.scheduler()
        job.servers()
        job.workers()
        job.wait_for_end()
    for label in ("worker_0", "worker_1"):
        log = job.log(label)
        assert len(re.findall(r"\]epoch: 1 step: \d total_loss: \d+\.\d+", log)) == 3, log
        assert "finished: 1 iterations" in log
