"""YOLO folders as people bring them: each box at its image, or one line that says why not."""

import random

import pytest
from coco_files import run_script
from label_folders import HEIGHT, WIDTH, boxes_of, write_files

from src.data.labels.convert import class_names
from src.data.labels.yolo import read_yolo
from src.errors import UserError

NAMES = "cell\nplatelet\nwbc\n"
LINE = "0 0.5 0.5 0.25 0.5\n"
BOX = [("cell", (24, 12, 40, 36))]


def yaml_of(**splits: str) -> str:
    return "".join(f"{k}: {v}\n" for k, v in splits.items()) + "names: [cell, platelet, wbc]\n"


def pair(image: str, label: str) -> dict:
    return {image: None, label: LINE}


def halves(images: str, labels: str, train: str = "train", val: str = "valid") -> dict:
    """An image and its labels in each of two folders; {} is the split's name there."""
    parts = [pair(images.format(s) + f"/{i}.jpg", labels.format(s) + f"/{i}.txt")
             for s, i in ((train, "a"), (val, "b"))]  # fmt: skip
    return {**parts[0], **parts[1]}


CVAT = {
    "obj.data": "train = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n",
    "obj.names": NAMES,
    "train.txt": "data/obj_train_data/a.jpg\n",
    "valid.txt": "data/obj_valid_data/b.jpg\n",
    **halves("obj_{}_data", "obj_{}_data"),
}
TEXT = {"classes.txt": NAMES}


@pytest.mark.parametrize(
    "files",
    [
        CVAT,
        {name: text for name, text in CVAT.items() if name != "obj.data"},
        {name: text for name, text in CVAT.items() if name not in ("train.txt", "valid.txt")},
        {**TEXT, **halves("images/{}", "labels/{}")},
        {**TEXT, **halves("{}/images", "{}/labels")},
        {**TEXT, **halves("images/{}", "labels/{}", "Train", "Validation")},
        {**TEXT, **halves("images/{}", "labels/{}", "train2017", "val2017")},
        {**TEXT, **halves("{}_images", "{}_labels")},
        {**halves("{}", "{}"), "train/_darknet.labels": NAMES, "valid/_darknet.labels": NAMES},
        {**halves("images/{}", "labels/{}"), "labels/train/classes.txt": NAMES},
        {**TEXT, **halves("images", "labels"), "train.txt": "images/a.jpg\n", "val.txt": "b.jpg"},
        {
            **halves("data/obj", "data/obj"), "data/obj.names": NAMES,
            "data/train.txt": "x64\\Release\\data\\obj\\a.jpg\r\n",
            "data/valid.txt": "x64\\Release\\data/obj/b.jpg\r\n",
        },
        {**halves("{}/images", "{}/labels"),
         "data.yaml": yaml_of(train="../train/images", val="../valid/images", test="../x")},
        {**halves("{}/images", "{}/labels"),
         "data.yaml": yaml_of(train="/x/set/train/images", valid="/x/set/valid/images")},
        {**halves("{}/images", "{}/labels"),
         "mine.yaml": yaml_of(train="train\\images", val="valid\\images")},
        {**halves("images/{}", "labels/{}"), "a.txt": "images/train/a.jpg",
         "data.yaml": yaml_of(path="/data/set", train="a.txt", val="images/valid")},
        {**halves("images/{}", "labels/{}"), "b.txt": "/home/me/set/images/valid/b.jpg\n",
         "data.yaml": yaml_of(train="images/train", validation="b.txt")},
    ],
)  # fmt: skip
def test_train_and_val_by_whatever_name(tmp_path, files):
    write_files(tmp_path, files)
    assert boxes_of(read_yolo(tmp_path)) == {"train": {"a.jpg": BOX}, "val": {"b.jpg": BOX}} or (
        boxes_of(read_yolo(tmp_path))
        == {"train": {"a.jpg": BOX}, "val": {"b.jpg": BOX}, "test": {}}
    )
    assert boxes_of(read_yolo(tmp_path, "valid")) == {"val": {"b.jpg": BOX}}


@pytest.mark.parametrize(
    "files",
    [
        {**TEXT, **pair("a.jpg", "a.txt")},
        {**TEXT, **pair("images/a.jfif", "labels/a.txt")},
        {**TEXT, **pair("images/a.jpg", "a.txt")},
        {**TEXT, **pair("images/sub/a.jpg", "labels/sub/a.txt")},
        {**TEXT, **pair("images/sub/a.jpg", "labels/a.txt")},
        {**TEXT, **pair("JPEGImages/a.jpg", "labels/a.txt")},
        {**TEXT, **pair("img/a.jpg", "annotations/a.txt")},
        {**TEXT, **pair("images/IMG 1.JPG", "labels/img 1.txt")},
        {"coco.names": NAMES, **pair("images/a.jpg", "labels/a.txt")},
        {"classes.txt": NAMES.encode("utf-16"), **pair("a.jpg", "a.txt")},
    ],
)
def test_labels_are_found_where_programs_put_them(tmp_path, files):
    (found,) = boxes_of(read_yolo(write_files(tmp_path, files)))["all"].values()
    assert found == BOX


def test_folders_and_images_that_are_not_taken_are_named(tmp_path):
    files = {"data.yaml": yaml_of(train="images/train"), **halves("images/{}", "labels/{}")}
    said = "\n".join(read_yolo(write_files(tmp_path, files)).notes.lines())
    assert "1 images in images/valid/, which no split has, left out" in said
    (tmp_path / "data.yaml").unlink()
    write_files(tmp_path, {**TEXT, **pair("images/rest/c.jpg", "labels/rest/c.txt")})
    source = read_yolo(tmp_path)
    assert list(source.splits) == ["train", "val"]
    assert "1 images in images/rest/, which no split has" in "\n".join(source.notes.lines())
    assert list(boxes_of(read_yolo(tmp_path, "all"))["all"]) == ["c.jpg"]


def test_a_missing_test_folder_stops_only_who_asks_for_it(tmp_path):
    files = {
        **halves("{}/images", "{}/labels"),
        "data.yaml": yaml_of(train="train/images", val="valid/images", test="test/images"),
    }
    write_files(tmp_path, files)
    source = read_yolo(tmp_path)
    assert [len(images) for images in source.splits.values()] == [1, 1, 0]
    assert "split test that is not there" in "".join(source.notes.lines())
    assert list(read_yolo(tmp_path, "train,val").splits) == ["train", "val"]
    with pytest.raises(UserError, match="test/images: no such folder"):
        read_yolo(tmp_path, "train,test")
    write_files(tmp_path, {"data.yaml": yaml_of(train="nowhere", val="valid/images")})
    with pytest.raises(UserError, match="to leave train out, list the others in --splits"):
        read_yolo(tmp_path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (".", "neither data.yaml nor classes.txt, .*/sets/one has; give --source=.*/sets/one"),
        ("sets/one/images", "give --source=.*/sets/one, which has them"),
    ],
)
def test_another_folder_of_the_data_set_is_named(tmp_path, given, words):
    files = {**TEXT, **halves("images/{}", "labels/{}")}
    write_files(tmp_path / "sets" / "one", files)
    with pytest.raises(UserError, match=words):
        read_yolo(tmp_path / given)


def test_images_without_any_label_are_no_success(tmp_path):
    files = {**TEXT, **pair("images/a.jpg", "labels/b.txt")}
    write_files(tmp_path / "yolo", files)
    words = ["--from=yolo", "--source=yolo", "--out=out", "--classes=yolo/classes.txt"]
    ended = run_script("tools/convert_labels.py", *words, cwd=tmp_path)
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2 and "no label file is of an image: the first is" in line
    assert "labels/b.txt, the first image" in line and "expected the same name" in line


def test_a_list_whose_images_are_elsewhere_is_explained(tmp_path):
    files = {**CVAT, "train.txt": "data/obj_x_data/a.jpg\ndata/none.jpg"}
    words = "none of the 2 images in .*train.txt .*/a.jpg is there: .* correct the folder"
    with pytest.raises(UserError, match=words):
        read_yolo(write_files(tmp_path, files))


def test_a_list_takes_no_image_of_another_split(tmp_path):
    files = {**TEXT, **halves("images/{}", "labels/{}"), "train.txt": "images/train/a.jpg\n"}
    write_files(tmp_path, {**files, "valid.txt": "images/valid/b.jpg\nimages/valid/a.jpg\n"})
    source = read_yolo(tmp_path)
    assert list(boxes_of(source)["val"]) == ["b.jpg"]
    assert "1 images that are listed and not there" in "".join(source.notes.lines())


def test_one_label_file_for_two_images_is_refused(tmp_path):
    files = {**TEXT, "a.jpg": None, "a.png": None, "a.txt": LINE}
    with pytest.raises(UserError, match="a.txt: it may be of .*a.jpg or of .*a.png"):
        read_yolo(write_files(tmp_path, files))


def test_numbers_of_classes_may_have_gaps(tmp_path):
    data = "train: images\nnames: {1: cell, 13: wbc, 3: platelet}\n"
    lines = "".join(f"{number} 0.5 0.5 0.25 0.5\n" for number in (13, 1, 3))
    write_files(tmp_path, {"data.yaml": data, "images/a.jpg": None, "labels/a.txt": lines})
    source = read_yolo(tmp_path)
    assert [name for name, _ in boxes_of(source)["train"]["a.jpg"]] == ["wbc", "cell", "platelet"]
    assert class_names(source, []) == ["cell", "platelet", "wbc"]


def test_an_empty_line_in_the_class_list_keeps_its_number(tmp_path):
    files = {"classes.txt": "cell\r\n\r\nwbc\r\nplatelet\r\n\r\n", **pair("a.jpg", "a.txt")}
    write_files(tmp_path, {**files, "a.txt": "2 0.5 0.5 0.25 0.5"})
    assert boxes_of(read_yolo(tmp_path)) == {"all": {"a.jpg": [("wbc", BOX[0][1])]}}
    write_files(tmp_path, {"a.txt": "1 0.5 0.5 0.25 0.5"})
    with pytest.raises(UserError, match="class 1, which has no name in the list"):
        read_yolo(tmp_path)
    write_files(tmp_path, {"classes.txt": "\ncell\n"})
    with pytest.raises(UserError, match="begins with an empty line"):
        read_yolo(tmp_path)


def test_values_slightly_beyond_1_are_clipped_and_counted(tmp_path):
    lines = "0 0.5 0.5 0.5 1.0371\n1 1.05 0.5 0.2 0.5\n2 0.5 0.5 0.5 1.0\n"
    source = read_yolo(write_files(tmp_path, {**TEXT, "a.jpg": None, "a.txt": lines}))
    found = [box for _, box in boxes_of(source)["all"]["a.jpg"]]
    assert found == [(16, 0, 48, 48), (60.8, 12, 64, 36), (16, 0, 48, 48)]
    assert "2 boxes that reach beyond the image, clipped" in "".join(source.notes.lines())


def test_empty_boxes_and_labels_without_an_image_are_counted(tmp_path):
    files = {**TEXT, "a.jpg": None, "a.txt": LINE + "0 0.5 0.5 0 0.1\n0 0.5 0.5 0.1 -0.05\n"}
    source = read_yolo(write_files(tmp_path, {**files, "b.txt": LINE, "README.txt": "words"}))
    said = "\n".join(source.notes.lines())
    assert boxes_of(source) == {"all": {"a.jpg": BOX}}
    assert "2 boxes without an extent" in said and "1 label files without an image" in said


def test_all_bad_lines_are_named_in_one_run(tmp_path):
    bad = {f"yolo/{n}.txt": f"0 {n}0 5 20 20\n" for n in range(1, 6)}
    write_files(
        tmp_path, {"yolo/classes.txt": NAMES, **{f"yolo/{n}.jpg": None for n in range(1, 6)}}
    )
    write_files(tmp_path, bad)
    words = ["--from=yolo", "--source=yolo", "--out=out"]
    ended = run_script("tools/convert_labels.py", *words, cwd=tmp_path)
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2 and "5 faults in the labels" in line and "are these pixels" in line
    lines = (tmp_path / "out" / "label_notes.txt").read_text().splitlines()
    assert [line.split(",")[0].split("/")[-1] for line in lines] == [
        f"{n}.txt" for n in range(1, 6)
    ]


def test_labels_of_another_encoding_are_named_with_the_fix(tmp_path):
    files = {"classes.txt": "红细胞\n".encode("gbk"), **pair("a.jpg", "a.txt")}
    with pytest.raises(
        UserError, match="classes.txt: is not UTF-8, it may be GBK; save it as UTF-8"
    ):
        read_yolo(write_files(tmp_path, files))


def test_every_note_is_in_a_file(tmp_path):
    files = {**TEXT, **pair("a.jpg", "a.txt"), "b.jpg": b"x", "c.jpg": b"", "d.jpg": None}
    write_files(tmp_path / "yolo", files)
    words = ["--from=yolo", f"--source={tmp_path}/yolo/../yolo", "--out=out"]
    ended = run_script("tools/convert_labels.py", *words, cwd=tmp_path)
    assert ended.returncode == 0 and "2 images that cannot be used" in ended.stdout
    assert ".." not in ended.stdout
    notes = (tmp_path / "out" / "label_notes.txt").read_text()
    assert all(f"{tmp_path}/yolo/{name}.jpg" in notes for name in "bcd")


@pytest.mark.parametrize("seed", range(3))
def test_random_boxes_come_back(tmp_path, seed):
    rng, files, truth = random.Random(seed), {**TEXT}, {}
    for number in range(8):
        lines, boxes = [], []
        for _ in range(rng.randrange(5)):
            x1, x2 = sorted(rng.sample(range(WIDTH + 1), 2))
            y1, y2 = sorted(rng.sample(range(HEIGHT + 1), 2))
            corners = (x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y2 / HEIGHT)
            middle = ((corners[0] + corners[2]) / 2, (corners[1] + corners[3]) / 2)
            sides = (corners[2] - corners[0], corners[3] - corners[1])
            lines.append("1 " + " ".join(f"{v:.8f}" for v in (*middle, *sides)))
            boxes.append(("platelet", (x1, y1, x2, y2)))
        files |= {f"images/{number}.jpg": None, f"labels/{number}.txt": "\n".join(lines)}
        truth[f"{number}.jpg"] = boxes
    found = boxes_of(read_yolo(write_files(tmp_path, files)))["all"]
    assert {name: sorted(boxes) for name, boxes in found.items()} == {
        name: sorted(boxes) for name, boxes in truth.items()
    }
