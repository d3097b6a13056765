"""Two sides never mean different things by one class number: files, configurations, silos."""

import json
import subprocess
import sys

import numpy as np
import pytest
from coco_files import PROJECT, coco_of, jpeg, run_script, write_coco
from commands import TINY

from src.data.coco import NO_BOX
from src.data.mindrecord import (
    check_mindrecord,
    described_classes,
    description,
    locked_folder,
    row,
    write_rows,
)
from src.dataset import create_fasterrcnn_dataset
from src.errors import UserError
from src.evaluation.validation_set import open_validation
from src.federated.fingerprint import differing, fingerprint, key_aspects
from src.launch.preflight.data import require_shards
from src.model_utils.config import load_config

NAME = "FasterRcnn.mindrecord"
CLASSES = ["background", "cat", 'a "quoted" dog', "ünït"]


def file_of(folder, classes):
    rows = [row(jpeg(n), np.array([[1, 2, 30, 20, 1, 0]], np.int32)) for n in range(2)]
    with locked_folder(folder / "mindrecord_0"):
        write_rows(folder / "mindrecord_0" / NAME, [rows], classes=classes)
    return folder / "mindrecord_0" / NAME


def test_the_list_comes_back_from_the_description():
    assert described_classes(description(CLASSES)) == CLASSES
    for text in (description([]), "fasterrcnn_json", "", "another schema with words"):
        assert described_classes(text) is None
    for text in (
        "fasterrcnn_json {",
        "fasterrcnn_json {}",
        'fasterrcnn_json {"coco_classes": [1]}',
    ):
        with pytest.raises((ValueError, KeyError)):
            described_classes(text)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (["background", "ünït", CLASSES[2], "cat"], "class 1 is 'cat' there and 'ünït' here"),
        (CLASSES[:3], r"class 3 is 'ünït' there and none \(3 names\) here"),
        ([*CLASSES, "cow"], r"class 4 is none \(4 names\) there and 'cow' here"),
    ],
)
def test_a_file_of_another_list_is_refused_wherever_it_is_opened(tmp_path, wanted, words):
    path = file_of(tmp_path, CLASSES)
    assert check_mindrecord(path, classes=CLASSES) == check_mindrecord(path) == 2
    with pytest.raises(UserError, match=words) as error:
        check_mindrecord(path, classes=wanted)
    assert str(path) in str(error.value) and "--overwrite" in str(error.value)
    with pytest.raises(UserError, match=words):
        require_shards(tmp_path, [0], NAME, 1, wanted)
    config = load_config(TINY)
    config.coco_classes = wanted
    with pytest.raises(UserError, match=words):
        create_fasterrcnn_dataset(config, path, batch_size=1)


def test_a_file_that_does_not_say_is_taken(tmp_path):
    assert check_mindrecord(file_of(tmp_path, []), classes=CLASSES) == 2


def test_conversion_records_the_list_and_keeps_no_file_of_another(tmp_path):
    write_coco(tmp_path, coco_of(2))
    flags = ["--mindrecord_dir=mindrecord_0", "--instance_set=train_0.json"]
    assert run_script("generate_mindrecord.py", *flags, cwd=tmp_path).returncode == 0
    path = tmp_path / "mindrecord_0" / NAME
    names = load_config().coco_classes
    assert check_mindrecord(path, classes=names) == 2
    turned = ["background", *reversed(names[1:])]
    (tmp_path / "turned.yaml").write_text(f"coco_classes: {json.dumps(turned)}\n")
    flags.append("--config_path=turned.yaml")
    refused = run_script("generate_mindrecord.py", *flags, cwd=tmp_path)
    assert refused.returncode == 2
    assert "class 1 is 'person' there and 'toothbrush' here" in refused.stderr
    assert run_script("generate_mindrecord.py", *flags, "--overwrite", cwd=tmp_path).returncode == 0
    assert check_mindrecord(path, classes=turned) == 2


def run_worker(folder):
    """What a worker process on the shards in `folder` ends with; there is no server."""
    words = [f"--config_path={TINY}", f"--dataset_path={folder}", "--batch_size=1"]
    return subprocess.run(
        [sys.executable, str(PROJECT / "test_fl_fasterrcnn.py"), "--ms_role=MS_WORKER", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_worker_refuses_a_shard_of_another_list_before_it_trains(tmp_path):
    file_of(tmp_path, ["background", "pizza", "airplane", "book", "sports ball"])
    ended = run_worker(tmp_path)
    assert ended.returncode == 2
    assert "class 1 is 'pizza' there and 'airplane' here" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_categories_that_no_class_matches_are_counted_and_named(tmp_path):
    coco = coco_of(2)
    coco["categories"] = [*coco["categories"], *({"id": 90 + n, "name": f"x{n}"} for n in range(7))]
    write_coco(tmp_path, coco)
    flags = ["--mindrecord_dir=mindrecord_0", "--instance_set=train_0.json"]
    said = run_script("generate_mindrecord.py", *flags, cwd=tmp_path).stdout
    assert "7 categories not in coco_classes: x0, x1, x2, x3, x4 and 2 more" in said


@pytest.mark.parametrize(
    ("categories", "words"),
    [
        ([{"id": 18, "name": "hund"}], "it has hund, coco_classes has person, bicycle"),
        ([{"id": 18, "name": "background"}], "it has background"),
        ([], "its list of categories is empty"),
    ],
)
def test_no_category_that_a_class_matches_is_an_error(tmp_path, categories, words):
    write_coco(tmp_path, {**coco_of(2), "categories": categories})
    flags = ["--mindrecord_dir=mindrecord_0", "--instance_set=train_0.json"]
    ended = run_script("generate_mindrecord.py", *flags, cwd=tmp_path)
    assert ended.returncode == 2 and words in ended.stderr
    assert not (tmp_path / "mindrecord_0").exists()


@pytest.mark.parametrize("name", ["Dog", " dog", "DOG "])
def test_a_category_that_the_list_spells_differently_is_an_error_and_not_dropped(tmp_path, name):
    coco = coco_of(2)
    coco["categories"][1] = {"id": 18, "name": name}
    write_coco(tmp_path, coco)
    flags = ["--mindrecord_dir=mindrecord_0", "--instance_set=train_0.json"]
    ended = run_script("generate_mindrecord.py", *flags, cwd=tmp_path)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert f"{name!r} in the labels, 'dog' in the list" in ended.stderr
    config = load_config(val_set=str(tmp_path / "train_0.json"))
    with pytest.raises(UserError, match="'dog' in the list"):
        open_validation(config)


def test_a_worker_without_any_box_does_not_join(tmp_path):
    names = load_config(TINY).coco_classes
    with locked_folder(tmp_path / "mindrecord_0"):
        rows = [row(jpeg(n), NO_BOX) for n in range(4)]
        write_rows(tmp_path / "mindrecord_0" / NAME, [rows], classes=names)
    ended = run_worker(tmp_path)
    assert ended.returncode == 2
    (line,) = ended.stderr.strip().splitlines()
    assert "no box in its 4 images, so this silo has nothing to learn from" in line


def test_silos_with_the_same_names_in_another_order_do_not_agree():
    config = load_config(TINY)
    mine = key_aspects(config)
    first, *names, last = config.coco_classes
    theirs = {**mine, "coco_classes": [first, last, *names]}
    assert len(theirs["coco_classes"]) == len(mine["coco_classes"])
    assert differing(list(mine), fingerprint(mine), fingerprint(theirs)) == ["coco_classes"]
    assert differing(list(mine), fingerprint(mine), fingerprint(dict(mine))) == []
