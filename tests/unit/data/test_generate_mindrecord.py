"""generate_mindrecord.py: what is written, kept, skipped and refused."""

import json
import os
import shutil

import mindspore.dataset as ds
import numpy as np
import pytest
from coco_files import coco_of, jpeg, run_script, write_coco

import generate_mindrecord
from src.data import conversion
from src.data.conversion import for_shard, parse_shards
from src.data.labels.text import create_train_data_from_txt, parse_json_annos_from_txt
from src.errors import UserError
from src.model_utils.config import load_config

NAME = "FasterRcnn.mindrecord"


@pytest.fixture
def generate(tmp_path, monkeypatch, capsys):
    """Run the command in this process in `tmp_path`; gives back what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        words = ("--mindrecord_dir=mindrecord_0", "--instance_set=train_0.json", *words)
        monkeypatch.setattr("sys.argv", ["generate_mindrecord.py", *words])
        generate_mindrecord.main()
        return capsys.readouterr().out

    return run


def annotations_in(folder):
    data = ds.MindDataset(str(folder / NAME), columns_list=["annotation"], shuffle=False)
    return [row["annotation"].tolist() for row in data.create_dict_iterator(1, True)]


def test_existing_file_is_kept_and_said_so(generate, tmp_path):
    source = write_coco(tmp_path, coco_of(3))
    assert "3 images, 3 boxes, 0 images skipped" in generate()
    before = (tmp_path / "mindrecord_0" / NAME).stat().st_mtime_ns
    assert "3 images, kept" in generate()
    assert (tmp_path / "mindrecord_0" / NAME).stat().st_mtime_ns == before
    write_coco(tmp_path, coco_of(2))
    os.utime(source, (2**31, 2**31))
    assert "newer" in generate()
    assert "2 images, 2 boxes" in generate("--overwrite")
    assert len(annotations_in(tmp_path / "mindrecord_0")) == 2


def test_half_a_pair_is_written_anew(generate, tmp_path):
    write_coco(tmp_path, coco_of(2))
    generate()
    (tmp_path / "mindrecord_0" / f"{NAME}.db").unlink()
    assert "2 images, 2 boxes" in generate()
    assert len(annotations_in(tmp_path / "mindrecord_0")) == 2


def test_shards_replace_both_numbers(generate, tmp_path):
    for number in range(3):
        write_coco(tmp_path, coco_of(number + 1), f"train_{number}.json")
    out = generate("--shards=0,2")
    assert "mindrecord_0" in out and "mindrecord_2" in out and "mindrecord_1" not in out
    assert len(annotations_in(tmp_path / "mindrecord_2")) == 3
    with pytest.raises(UserError, match="train_3.json"):
        generate("--shards=1-3")
    assert not (tmp_path / "mindrecord_1").exists()


@pytest.mark.parametrize(
    ("text", "numbers"), [("3", [3]), ("0-2", [0, 1, 2]), ("5-6, 0,5", [0, 5, 6])]
)
def test_shard_lists(text, numbers):
    assert parse_shards(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1,,2", "1-2-3", "9999999"])
def test_bad_shard_lists(text):
    with pytest.raises(UserError, match="--shards"):
        parse_shards(text)


def test_shard_without_a_number_to_replace():
    with pytest.raises(UserError, match="no shard number"):
        for_shard(load_config(instance_set="instances_train2017.json"), 1)
    with pytest.raises(UserError, match="mindrecord_<number>"):
        for_shard(load_config(mindrecord_dir="shard_0"), 1)


def test_broken_images_are_skipped_counted_and_named(generate, tmp_path):
    write_coco(tmp_path, coco_of(4))
    (tmp_path / "train_0" / "1.jpg").write_bytes(jpeg()[:-30])
    (tmp_path / "train_0" / "2.jpg").write_bytes(b"not an image")
    out = generate()
    assert "2 images, 2 boxes, 2 images skipped" in out
    assert "1.jpg: a JPEG that is cut off" in out
    with pytest.raises(UserError, match="1.jpg"):
        generate("--strict", "--overwrite")
    assert len(annotations_in(tmp_path / "mindrecord_0")) == 2
    for number in range(4):
        (tmp_path / "train_0" / f"{number}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="none of its images"):
        generate("--overwrite")
    assert len(annotations_in(tmp_path / "mindrecord_0")) == 2


def test_verify_finds_damage_that_the_header_hides(generate, tmp_path):
    write_coco(tmp_path, coco_of(2))
    damaged = bytearray(jpeg(width=320, height=200))
    damaged[20000:24000] = np.random.default_rng(0).bytes(4000)
    (tmp_path / "train_0" / "1.jpg").write_bytes(bytes(damaged))
    assert "2 images" in generate()
    assert "do not decode" in generate("--verify", "--overwrite")


def test_bad_boxes_are_counted_once_in_all_and_refused_when_strict(generate, tmp_path):
    coco = coco_of(2, boxes=[(4, 4, 20, 20), (40, 4, 20, 20), (4, 4, 0, 5)])
    coco["annotations"][0]["category_id"] = 1234
    write_coco(tmp_path, coco)
    with pytest.raises(UserError, match="2 of zero or negative size"):
        generate("--strict")
    assert not (tmp_path / "mindrecord_0").exists()
    out = generate()
    assert "2 partly outside the image, clipped" in out and "2 of zero or negative size" in out
    assert "1 whose category_id 1234 is none of its categories" in out
    assert annotations_in(tmp_path / "mindrecord_0") == [
        [[40, 4, 48, 24, 17, 0]],
        [[4, 4, 24, 24, 17, 0], [40, 4, 48, 24, 17, 0]],
    ]


def test_size_is_taken_from_the_image_where_the_json_has_none(generate, tmp_path):
    coco = coco_of(2, boxes=[(40, 4, 20, 20), (60, 4, 5, 5)])
    for image in coco["images"]:
        del image["width"]
    write_coco(tmp_path, coco)
    coco["annotations"][0]["bbox"] = [60, 4, 5, 5]
    write_coco(tmp_path, coco)
    with pytest.raises(UserError, match="0.jpg: boxes 2 outside the image"):
        generate("--strict")
    out = generate()
    assert "2 images, 1 boxes" in out
    assert "1 partly outside" in out and "3 outside the image, dropped" in out
    assert annotations_in(tmp_path / "mindrecord_0") == [
        [[0, 0, 0, 0, 0, 1]],
        [[40, 4, 48, 24, 17, 0]],
    ]


def test_json_that_says_another_size_is_reported(generate, tmp_path):
    coco = coco_of(1)
    coco["images"][0].update(width=480, height=320)
    write_coco(tmp_path, coco)
    assert "1 images of another size than the labels say" in generate()


def test_too_little_disk_is_refused_before_writing(generate, tmp_path, monkeypatch):
    write_coco(tmp_path, coco_of(1))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match="MiB of disk are free"):
        generate()
    assert not (tmp_path / "mindrecord_0").exists()


def test_large_image_gets_a_larger_page(generate, tmp_path):
    write_coco(tmp_path, coco_of(2))
    (tmp_path / "train_0" / "1.jpg").write_bytes(jpeg() + b"\0" * (33 * 2**20))
    assert "2 images" in generate()
    assert len(annotations_in(tmp_path / "mindrecord_0")) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mindrecord_dir=shard_0"], "mindrecord_<number>"),
        (["--instance_set=none.json"], "none.json: no such file"),
        (["--instance_set=bad_0.json"], "no list 'annotations'"),
        (["--image_dir=nowhere"], "nowhere"),
        (["--dataset=voc"], "expected one of coco, other"),
        (["--shards=1-0"], "--shards"),
        (["--mindrecord_di=x"], "did you mean --mindrecord_dir"),
        (["--dataset=other"], "anno_path is empty"),
        (["--prefix=a/b"], "prefix a/b: expected the name of a file"),
        (["--strict=perhaps"], "argument --strict: 'perhaps' is not True or False"),
        (["--batch_size=two"], "argument --batch_size: invalid int value: 'two'"),
        (["--mindrecord_dir=file/mindrecord_0"], "cannot be made"),
    ],
)
def test_bad_input_ends_with_2_in_one_line_and_leaves_nothing(tmp_path, words, message):
    write_coco(tmp_path, coco_of(1))
    (tmp_path / "bad_0.json").write_text(json.dumps({"images": []}))
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    given = ["--mindrecord_dir=mindrecord_0", "--instance_set=train_0.json", *words]
    ended = run_script("generate_mindrecord.py", *given, cwd=tmp_path)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_help_says_where_images_are_looked_up(tmp_path):
    ended = run_script("generate_mindrecord.py", "--help", cwd=tmp_path)
    assert ended.returncode == 0
    assert "looked up" in ended.stdout and "--shards" in ended.stdout


def text_file(folder, *lines):
    (folder / "a b.jpg").write_bytes(jpeg())
    (folder / "labels.txt").write_text("\n".join(lines) + "\n")
    return folder / "labels.txt"


def test_text_labels_with_spaces_clipping_and_the_json_of_them(generate, tmp_path):
    path = text_file(tmp_path, "a b.jpg 1,2,30,20,17 4,4,400,20.9,1,1 5,5,5,9,1", "")
    files, boxes = create_train_data_from_txt(tmp_path, path)
    assert files == [str(tmp_path / "a b.jpg")]
    assert boxes[files[0]].tolist() == [[1, 2, 30, 20, 17, 0], [4, 4, 400, 20, 1, 1]]
    out = generate("--dataset=other", f"--image_dir={tmp_path}", f"--anno_path={path}")
    assert "1 of zero or negative size" in out and "1 partly outside" in out
    assert annotations_in(tmp_path / "mindrecord_0") == [
        [[1, 2, 30, 20, 17, 0], [4, 4, 48, 20, 1, 1]]
    ]
    coco = parse_json_annos_from_txt(path, load_config())
    assert coco["images"] == [{"id": 1, "file_name": "a b.jpg"}]
    assert coco["annotations"][0]["bbox"] == [1, 2, 29, 18]
    assert [category["id"] for category in coco["categories"]] == list(range(81))


def test_text_boxes_of_no_object_class_are_dropped_and_counted(generate, tmp_path):
    path = text_file(tmp_path, "a b.jpg 1,2,30,20,80 1,2,30,20,0 1,2,30,20,81 1,2,9999999999,20,1")
    out = generate("--dataset=other", f"--image_dir={tmp_path}", f"--anno_path={path}")
    assert "1 of class 0, " in out and "1 of class 81, " in out and "1 outside the image" in out
    assert annotations_in(tmp_path / "mindrecord_0") == [[[1, 2, 30, 20, 80, 0]]]


def test_text_boxes_none_of_which_is_of_a_class_are_an_error(generate, tmp_path):
    path = text_file(tmp_path, "a b.jpg 1,2,30,20,0 1,2,30,20,81,1")
    with pytest.raises(UserError, match=r"which has 1 to 80 .* found 0, 81"):
        generate("--dataset=other", f"--image_dir={tmp_path}", f"--anno_path={path}")
    assert not (tmp_path / "mindrecord_0").exists()


@pytest.mark.parametrize(
    "line", ["a b.jpg 1,2,3", "a b.jpg 1,2,3,4,5,6,7", "1,2,3,4,5", "a b.jpg 1,2,3,4,5 x"]
)
def test_bad_text_lines_are_named(tmp_path, line):
    with pytest.raises(UserError, match="line 1"):
        create_train_data_from_txt(tmp_path, text_file(tmp_path, line))


def test_other_bad_text_labels(tmp_path):
    with pytest.raises(UserError, match="no such image"):
        create_train_data_from_txt(tmp_path, text_file(tmp_path, "none.jpg 1,2,3,4,5"))
    with pytest.raises(UserError, match="no such image"):
        create_train_data_from_txt(tmp_path, text_file(tmp_path, "n" * 300 + " 1,2,3,4,5"))
    with pytest.raises(UserError, match="no image in it"):
        create_train_data_from_txt(tmp_path, text_file(tmp_path, ""))
    with pytest.raises(UserError, match="cannot be read"):
        create_train_data_from_txt(tmp_path, tmp_path / "none.txt")
    with pytest.raises(UserError, match="class 81"):
        parse_json_annos_from_txt(text_file(tmp_path, "a b.jpg 1,2,3,4,81"), load_config())
