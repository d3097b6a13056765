"""The data of a machine's silos are looked at before a start."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from coco_files import coco_of, write_coco
from evaluation_sets import tiny

from src.data.mindrecord import ObjectCounts
from src.errors import UserError
from src.job.job_config import load_job
from src.launch.preflight import data
from src.launch.preflight.command import preflight_parser
from src.launch.preflight.data import objects_there, require_shards, validation_sets
from src.launch.preflight.roles import worker_checks
from src.model_utils.config import PROJECT_DIR, get_config


def test_missing_shards_are_named(tmp_path):
    shard = tmp_path / "mindrecord_0"
    shard.mkdir()
    for name in ("f", "f.db"):
        (shard / name).write_bytes(b"")
    with pytest.raises(UserError, match="in mindrecord_1, mindrecord_2 .*found: mindrecord_0"):
        require_shards(tmp_path, [0, 1, 2], "f", 2)
    with pytest.raises(UserError, match="mindrecord_0"):
        require_shards(tmp_path, [0], "f", 2)


def test_images_with_more_objects_than_there_is_room_for_are_counted_for_each_silo(monkeypatch):
    classes = ["background", "cat", "dog", "cow"]
    indexes = {
        "a": ObjectCounts(Counter({0: 5, 3: 2}), Counter({2: 6}), dropped=3),
        "b": ObjectCounts(Counter({9: 2, 4: 1}), None),
        "c": None,
    }
    monkeypatch.setattr(data, "indexed_objects", lambda file: indexes[file.parent.name])
    files = [Path(name) / "x.mindrecord" for name in indexes]
    of_a = "a: objects by class: dog 6; none of cat, cow"
    room = "up to 9 in an image, num_gts 9 holds all"
    assert objects_there(files[:2], 9, classes) == f"{room}; {of_a}"
    found = objects_there(files[:2], 4, classes)
    assert (found.level, found.subject) == ("WARN", "objects")
    assert found.text == (
        "b: 2 images have more than num_gts 4 objects: the rest of them would be learned as "
        f"background; num_gts 9 holds all; {of_a}"
    )
    # The index of another writer does not have them.
    later = "the index of c does not say: the worker counts at its start"
    assert objects_there(files, 9, classes) == f"{room}; {of_a}; {later}"
    assert objects_there(files, 4, classes).text == f"{found.text}; {later}"
    assert objects_there(files[2:], 4, classes) == later


def test_a_shard_that_lost_most_of_its_boxes_is_a_warning_and_one_without_any_a_failure(
    monkeypatch,
):
    counts = ObjectCounts(Counter({0: 5, 1: 2}), Counter({1: 2}), dropped=98)
    monkeypatch.setattr(data, "indexed_objects", lambda file: counts)
    found = objects_there([Path("a/x.mindrecord")], 9, ["background", "cat"])
    assert found.level == "WARN"
    assert found.text.startswith(
        "a: most boxes of the labels were left out: 98 of 100 (98%), 2 remain: its conversion says"
    )
    counts = ObjectCounts(Counter({0: 7}), Counter())
    with pytest.raises(UserError, match="a/x.mindrecord: no box in its 7 images, so this silo has"):
        objects_there([Path("a/x.mindrecord")], 9, ["background", "cat"])


def test_what_workers_evaluate_on_is_looked_at_before_they_start(tmp_path):
    coco = coco_of(4)
    path = write_coco(tmp_path, coco, "val_0.json")
    said = validation_sets(tiny(val_set=str(path)), range(2))
    assert said.startswith(f"{path}: 4 images, 4 boxes of 2 classes")
    coco["categories"].append({"id": 9, "name": "Wolf"})
    coco["annotations"][0]["category_id"] = 9
    write_coco(tmp_path, coco, "val_1.json")
    each = tiny(val_set=str(tmp_path / "val_{worker}.json"))
    found = validation_sets(each, range(2))
    assert (found.level, found.subject) == ("WARN", "val_set")
    assert "1 boxes of category 'Wolf', not in coco_classes" in found.text
    with pytest.raises(UserError, match="val_2.json: no such file"):
        validation_sets(each, range(3))


def test_without_run_eval_nobody_looks_for_a_validation_set(tmp_path):
    (tmp_path / "job.yaml").write_text((PROJECT_DIR / "default_yaml_config.yaml").read_text())
    job = load_job(tmp_path / "job.yaml")
    words = ["--run_eval=True", "--val_set=nowhere.json"]
    subjects = []
    for flags in ([], words):
        config = get_config([f"--yaml_config={job.path}", *flags], preflight_parser("Check."))
        checks = {check.subject: check for check in worker_checks(job, tmp_path, config)}
        subjects.append(checks.get("val_set"))
    assert subjects[0] is None
    found = subjects[1].run()
    assert found.level == "FAIL" and "nowhere.json" in found.text


def test_launchers_do_not_wait_for_mindspores_import():
    program = "import sys, src.launch.launchers; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=PROJECT_DIR).returncode == 0
