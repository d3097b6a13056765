"""Shards of a COCO json: disjoint, complete, even or skewed, and usable by the next command."""

import json
from collections import Counter

import numpy as np
import pytest
from coco_files import coco_of, run_script, write_coco
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.splitting import (
    dominant_categories,
    shard_jsons,
    split_by_category,
    split_evenly,
    table,
)
from src.errors import UserError


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


def test_dominant_category_of_each_image():
    coco = coco_of(3, boxes=[(1, 1, 5, 5), (2, 2, 5, 5)])
    coco["annotations"][0]["category_id"] = 1
    coco["annotations"][2]["category_id"] = 99
    coco["annotations"] = coco["annotations"][:4]
    assert dominant_categories(coco).tolist() == [0, 1, -1]


def test_annotations_follow_their_images_and_nothing_else_is_lost():
    coco = coco_of(7, boxes=[(1, 1, 5, 5), (2, 2, 5, 5)])
    coco["annotations"].append({"id": 999, "image_id": 12345, "category_id": 18, "bbox": [0] * 4})
    coco["licenses"] = [{"id": 1}]
    shards = shard_jsons(coco, split_evenly(7, 3, 1), "images")
    listed = [image["id"] for shard in shards for image in shard["images"]]
    assert sorted(listed) == [1, 2, 3, 4, 5, 6, 7]
    for shard in shards:
        assert shard["categories"] == coco["categories"] and shard["licenses"] == [{"id": 1}]
        wanted = {image["id"] for image in shard["images"]}
        expected = [a for a in coco["annotations"] if a["image_id"] in wanted]
        assert shard["annotations"] == expected
    lines = table(shards, limit=2)
    assert "3 shards of 2 to 3 images, 7 in all" in lines[-1] and "1 more" in lines[-2]


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
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
