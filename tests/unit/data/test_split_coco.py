"""Shards of a COCO json: disjoint, complete, even or skewed, and usable by the next command."""

import json
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from coco_files import PROJECT, coco_of, run_script, write_coco
from evaluation_sets import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.splitting import (
    deal,
    dominant_categories,
    object_counts,
    read_source,
    shards_without_objects,
    split_by_category,
    split_evenly,
    table,
    write_shards,
)
from src.errors import UserError
from src.evaluation.validation_set import open_validation


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_even_shards_are_disjoint_complete_and_even(count, shards, seed):
    if shards > count:
        with pytest.raises(UserError, match="num_shards"):
            split_evenly(count, shards, seed)
        return
    parts = split_evenly(count, shards, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(
    st.lists(st.integers(-1, 3), min_size=12, max_size=80),
    st.integers(1, 12),
    st.floats(0.01, 100),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_skewed_shards_are_disjoint_complete_and_never_empty(categories, shards, alpha, seed):
    parts = split_by_category(np.array(categories), shards, alpha, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(categories)))
    assert min(map(len, parts)) > 0


def test_seed_decides():
    first, again, other = (split_evenly(50, 3, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other))


def test_small_alpha_skews_more():
    categories = np.arange(4000) % 4

    def largest_share(alpha):
        parts = split_by_category(categories, 4, alpha, 1)
        shares = [max(Counter(categories[part]).values()) / len(part) for part in parts]
        return float(np.mean(shares))

    assert largest_share(0.1) > 0.6 > 0.35 > largest_share(100.0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(UserError, match="alpha"):
        split_by_category(np.zeros(5), 2, alpha, 1)


def source_of(folder, coco):
    """`coco` as the split reads it."""
    path = folder / "all.json"
    path.write_text(json.dumps(coco))
    return read_source(path)


def split(folder, coco, count):
    """The jsons of `count` even shards, and the source that they are of."""
    source = source_of(folder, coco)
    shards = deal(source, split_evenly(len(coco["images"]), count, 1))
    paths = write_shards(source, shards, "images", folder / "out")
    return [json.loads(path.read_text()) for path in paths], source


def test_dominant_category_of_each_image(tmp_path):
    coco = coco_of(3, boxes=[(1, 1, 5, 5), (2, 2, 5, 5)])
    coco["annotations"][0]["category_id"] = 1
    coco["annotations"][2]["category_id"] = 99
    coco["annotations"] = coco["annotations"][:4]
    assert dominant_categories(source_of(tmp_path, coco)).tolist() == [0, 1, -1]


def test_annotations_follow_their_images_and_nothing_else_is_lost(tmp_path):
    coco = coco_of(7, boxes=[(1, 1, 5, 5), (2, 2, 5, 5)])
    coco["annotations"].append({"id": 999, "image_id": 12345, "category_id": 18, "bbox": [0] * 4})
    coco["licenses"] = [{"id": 1}]
    shards, source = split(tmp_path, coco, 3)
    listed = [image["id"] for shard in shards for image in shard["images"]]
    assert sorted(listed) == [1, 2, 3, 4, 5, 6, 7]
    for shard in shards:
        assert shard["categories"] == coco["categories"] and shard["licenses"] == [{"id": 1}]
        wanted = {image["id"] for image in shard["images"]}
        expected = [a for a in coco["annotations"] if a["image_id"] in wanted]
        assert shard["annotations"] == expected
    lines = table(source, deal(source, split_evenly(7, 3, 1)), limit=2)
    assert "3 shards of 2 to 3 images, 7 in all" in lines[-1] and "1 more" in lines[-2]


@pytest.mark.parametrize("first", ["images", "annotations", "licenses"])
def test_a_shard_is_written_as_json_writes_it_with_the_keys_where_they_were(tmp_path, first):
    coco = coco_of(4, boxes=[(1.5, 1, 5, 5), (2, 2, 5e-7, 1e20)])
    coco["images"][0]["file_name"] = "Zelle ä\u2028.jpg"
    coco["annotations"][1].update(segmentation=[[0.1, float("nan")]], track=10**30, note=None)
    coco["annotations"] = [entry for entry in coco["annotations"] if entry["image_id"] != 3]
    coco = {first: None, **coco, "licenses": [{"id": 1}]}
    expected = {**coco, "info": {"image_dir": "images"}}
    split(tmp_path, coco, 1)
    assert (tmp_path / "out" / "train_0.json").read_text() == json.dumps(expected)


def test_annotations_of_images_that_are_not_listed_are_counted(tmp_path):
    coco = coco_of(3)
    coco["annotations"][0]["image_id"] = coco["annotations"][2]["image_id"] = 77
    source = source_of(tmp_path, coco)
    assert source.notes == [
        "2 annotations have an image_id that is not in 'images', first 77: dropped"
    ]
    assert [len(shard.annotations) for shard in deal(source, [np.arange(3)])] == [1]


@pytest.mark.parametrize("other", [str, float, "00{}".format, " {} ".format])
def test_ids_that_differ_in_their_type_are_matched_and_that_is_said(tmp_path, other):
    coco = coco_of(3)
    for entry in coco["annotations"]:
        entry.update(image_id=other(entry["image_id"]), category_id=other(18))
    (shard,), source = split(tmp_path, coco, 1)
    assert [entry["image_id"] for entry in shard["annotations"]] == [1, 2, 3]
    assert {entry["category_id"] for entry in shard["annotations"]} == {18}
    said = [] if other is float else [f"first {other(1)!r} with 1", f"first {other(18)!r} with 18"]
    assert len(source.notes) == len(said)
    assert all(what in note for what, note in zip(said, source.notes))
    for entry in coco["images"]:
        entry["id"] = str(entry["id"])
    coco["annotations"] = coco_of(3)["annotations"]
    (shard,), source = split(tmp_path, coco, 1)
    assert [entry["image_id"] for entry in shard["annotations"]] == ["1", "2", "3"]


def test_an_id_that_two_images_could_mean_is_not_matched(tmp_path):
    coco = coco_of(3)
    coco["images"][0]["id"], coco["images"][1]["id"] = "7", "07"
    coco["annotations"][0]["image_id"], coco["annotations"][1]["image_id"] = 7, "7"
    source = source_of(tmp_path, coco)
    assert source.annotations.image_ids == [7, "7", 3]
    assert [note.split(",")[0] for note in source.notes] == [
        "1 annotations have an image_id that is not in 'images'"
    ]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (
            {"image_id": "x"},
            "3 have an image_id that is not in 'images', the first image_id is 'x'",
        ),
        ({"bbox": None}, "3 have neither bbox nor segmentation"),
        ({"iscrowd": 1}, "3 are crowds"),
        (None, "its list 'annotations' is empty"),
    ],
)
def test_a_json_without_anything_to_train_on_is_refused(tmp_path, change, cause):
    coco = coco_of(3)
    coco["annotations"] = [{**entry, **change} for entry in coco["annotations"] if change]
    with pytest.raises(UserError, match="nothing to train on") as refusal:
        source_of(tmp_path, coco)
    assert cause in str(refusal.value) and "all.json" in str(refusal.value)


def test_shards_without_a_box_and_files_of_several_ids_are_said(tmp_path):
    coco = coco_of(4)
    coco["annotations"] = coco["annotations"][:2]
    coco["annotations"][1]["iscrowd"] = 1
    coco["images"][1]["file_name"] = "a\\b.jpg"
    coco["images"][2]["file_name"] = "./a/b.jpg"
    source = source_of(tmp_path, coco)
    (note,) = source.notes
    assert note.startswith("1 file is listed under several ids, first a/b.jpg (ids 2, 3): ")
    shards = deal(source, [np.array([0, 3]), np.array([1]), np.array([2])])
    assert shards_without_objects(source, shards) == [
        "2 shards have no box to train on: train_1.json, train_2.json"
    ]


def test_what_is_dropped_is_said_by_the_command(tmp_path):
    coco = coco_of(3)
    coco["annotations"].append({"id": 999, "image_id": 12345, "category_id": 18, "bbox": [1] * 4})
    write_coco(tmp_path, coco, "all.json")
    ended = run_script("tools/split_coco.py", "--json=all.json", "--num_shards=2", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "note: 1 annotations have an image_id that is not in 'images'" in ended.stdout


# Loads what the split loads, and says how much memory reading and writing took on top of that.
MEASURE = """
import resource, sys
from pathlib import Path
from src.data.splitting import deal, read_source, split_evenly, write_shards
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, folder = peak(), Path(sys.argv[1])
source = read_source(folder / "all.json")
parts = split_evenly(len(source.rest["images"]), 20, 1)
write_shards(source, deal(source, parts), "images", folder / "out")
print(peak() - before)
"""


def large_coco(path, images, boxes):
    """Write a json of polygons as COCO has them, without holding it."""
    numbers = random.Random(1)
    coco = coco_of(images)
    with path.open("w") as file:
        file.write(f'{{"images": {json.dumps(coco["images"])}, "annotations": [')
        for number in range(boxes):
            points = [round(numbers.uniform(0, 640), 2) for _ in range(numbers.randrange(10, 89))]
            entry = {"id": number, "image_id": 1 + number % images, "category_id": 18}
            entry |= {"bbox": [1.5, 2.5, 30.25, 40.75], "iscrowd": 0, "segmentation": [points]}
            file.write(f"{', ' if number else ''}{json.dumps(entry)}")
        file.write(f'], "categories": {json.dumps(coco["categories"])}}}')


@pytest.mark.slow
def test_a_large_json_is_split_in_less_than_twice_its_size_of_memory(tmp_path):
    path = tmp_path / "all.json"
    large_coco(path, images=15_000, boxes=110_000)
    size = path.stat().st_size
    assert size > 50_000_000
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    # As Python's objects it takes more than six times its size.
    assert int(done.stdout) < 2 * size
    shards = [json.loads(file.read_text()) for file in (tmp_path / "out").iterdir()]
    ids = [image["id"] for shard in shards for image in shard["images"]]
    assert sorted(ids) == list(range(1, 15_001))
    assert sum(len(shard["annotations"]) for shard in shards) == 110_000


def test_split_then_generate_from_other_folders(tmp_path):
    write_coco(tmp_path / "my data", coco_of(5), "all.json")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    words = ("--json=my data/all.json", "--num_shards=2", "--out=my data/split")
    first = run_script("tools/split_coco.py", *words, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "2 shards of 2 to 3 images, 5 in all" in first.stdout
    folder = tmp_path / "my data" / "split" / "split_2"
    assert sorted(path.name for path in folder.iterdir()) == ["train_0.json", "train_1.json"]
    assert json.loads((folder / "train_0.json").read_text())["info"]["image_dir"] == "../../all"

    again = run_script("tools/split_coco.py", *words, cwd=tmp_path)
    assert again.returncode == 2 and "--overwrite" in again.stderr
    assert again.stderr.count("\n") == 1

    ended = run_script(
        "generate_mindrecord.py",
        f"--mindrecord_dir={folder}/mindrecord_0",
        f"--instance_set={folder}/train_0.json",
        "--shards=0-1",
        cwd=elsewhere,
    )
    assert ended.returncode == 0, ended.stderr
    for number in range(2):
        assert (folder / f"mindrecord_{number}" / "FasterRcnn.mindrecord.db").is_file()

    redone = run_script("tools/split_coco.py", *words, "--overwrite", "--alpha=0.5", cwd=tmp_path)
    assert redone.returncode == 0 and "earlier split" in redone.stdout


def patients(folder):
    """all.json: 40 images of ten patients; each has a dog, every eighth a person too."""
    coco = coco_of(40)
    for number, entry in enumerate(coco["images"]):
        entry["file_name"] = f"p{number % 10}_{number}.jpg"
        if number % 8 == 0:
            person = {"id": 9000 + number, "image_id": entry["id"], "category_id": 1}
            coco["annotations"].append({**person, "bbox": [1, 2, 9, 9]})
    write_coco(folder, coco, "all.json")


def test_a_part_is_held_out_for_validation_with_every_class_and_whole_patients(tmp_path):
    patients(tmp_path)
    words = ("--json=all.json", "--val=0.25", "--group=^(p\\d+)_", "--num_shards=2", "--out=a b")
    ended = run_script("tools/split_coco.py", *words, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / "a b" / "split_2"
    parts = {path.name: json.loads(path.read_text()) for path in folder.iterdir()}
    assert sorted(parts) == ["train_0.json", "train_1.json", "val.json"]
    names = {name: {entry["file_name"] for entry in coco["images"]} for name, coco in parts.items()}
    assert sum(map(len, names.values())) == 40 and len(set.union(*names.values())) == 40
    training = {name.split("_")[0] for name in names["train_0.json"] | names["train_1.json"]}
    held = {name.split("_")[0] for name in names["val.json"]}
    assert held and not held & training
    shown = [line.split() for line in ended.stdout.splitlines()]
    kept, val = 40 - len(names["val.json"]), len(names["val.json"])
    for row in (["training", "validation"], ["images", str(kept), str(val)],
                ["dog", str(kept), str(val)]):  # fmt: skip
        assert row in shown
    assert f"to evaluate on: --val_set='{folder / 'val.json'}'" in ended.stdout

    config = tiny(val_set=str(folder / "val.json"))
    opened = open_validation(config)
    assert len(opened) == val and {name for _, name in opened.categories.values()} == {
        "person", "dog",
    }  # fmt: skip
    again = run_script("tools/split_coco.py", *words, "--overwrite", cwd=tmp_path)
    assert again.returncode == 0 and again.stdout == ended.stdout
    assert json.loads((folder / "val.json").read_text()) == parts["val.json"]
    # Without --val its images go into the shards, so it must not stay.
    plain = [word for word in words if not word.startswith(("--val", "--group"))]
    done = run_script("tools/split_coco.py", *plain, "--overwrite", cwd=tmp_path)
    assert done.returncode == 0
    assert sorted(path.name for path in folder.iterdir()) == ["train_0.json", "train_1.json"]


def test_one_silo_needs_no_number_of_shards_and_one_file_under_two_ids_is_on_one_side(tmp_path):
    coco = coco_of(60)
    for number in range(0, 60, 2):
        coco["images"][number + 1]["file_name"] = f"./{coco['images'][number]['file_name']}"
    write_coco(tmp_path, coco, "all.json")
    ended = run_script("tools/split_coco.py", "--json=all.json", "--val=0.3", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    train, val = (
        json.loads((tmp_path / "datasets/coco_split/split_1" / name).read_text())["images"]
        for name in ("train_0.json", "val.json")
    )
    sides = [{entry["file_name"].lstrip("./") for entry in part} for part in (train, val)]
    assert not sides[0] & sides[1] and (len(train), len(val)) == (42, 18)


def test_crowds_and_annotations_without_a_category_are_no_objects_of_a_part(tmp_path):
    coco = coco_of(2, boxes=[(1, 1, 5, 5), (2, 2, 5, 5)])
    coco["annotations"][0]["iscrowd"] = 1
    coco["annotations"][3]["category_id"] = 99
    assert object_counts(source_of(tmp_path, coco)) == [{18: 1}, {18: 1}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json=all.json"], "--num_shards is missing: give the number of silos, or --val=0.15"),
        (["--json=all.json", "--val=15"], "--val 15: expected more than 0 and less than 1"),
        (["--json=all.json", "--val=nan"], "--val nan: expected more than 0 and less than 1"),
        (["--json=all.json", "--val=0.1"], "--val 0.1: of 3 images the validation part would have"),
        (["--json=all.json", "--val=0.4", "--seed=-1"], "--seed -1: expected 0 or more"),
        (["--json=all.json", "--val=0.4", "--group=x(y)"], "3 of 3 file names have no match"),
        (["--json=all.json", "--num_shards=2", "--group=(.)"], "--group: only --val holds groups"),
        (["--json=all.json", "--val=0.4", "--num_shards=3"], "--num_shards 3: expected 1 to 2"),
        (["--json=none.json", "--num_shards=2"], "no such COCO json"),
        (["--json=all.json", "--num_shards=9"], "--num_shards 9"),
        (["--json=all.json", "--num_shards=0"], "--num_shards 0"),
        (["--json=all.json", "--num_shards=2", "--image_dir=nowhere"], "nowhere"),
        (["--json=all.json", "--num_shards=2", "--out=all.json"], "cannot be written"),
        (["--json=all.json", "--num_shard=2", "--num_shards=2"], "did you mean --num_shards"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, words, message):
    write_coco(tmp_path, coco_of(3), "all.json")
    before = sorted(tmp_path.rglob("*"))
    ended = run_script("tools/split_coco.py", *words, cwd=tmp_path)
    assert ended.returncode == 2
    assert message in ended.stderr and ended.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
