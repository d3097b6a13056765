"""VOC and YOLO labels to COCO jsons: the same boxes come back, what is odd is said or refused."""

import io
import json
import shlex
import struct
import zlib
from pathlib import Path

import cv2
import mindspore.dataset as ds
import numpy as np
import pytest
import yaml
from coco_files import jpeg, run_script
from label_folders import voc_xml
from PIL import Image, ImageOps

from src.data.image_check import ORIENTATION, peek
from src.data.labels.convert import class_names, configuration_lines, read_class_list
from src.data.labels.voc import read_voc
from src.data.labels.voc_xml import read_xml
from src.data.labels.yolo import read_yolo
from src.errors import UserError
from src.model_utils.config import load_config

TOOL = "tools/convert_labels.py"
SIZE = (48, 32)
# x1, y1, x2, y2 as edges, and the class; None: an image without labels.
TRUTH = {
    "a b": [((4, 5, 24, 25), "dog"), ((0, 0, 48, 32), "person")],
    "two": [((10, 2, 11, 3), "person")],
    "empty": [],
    "none": None,
}


def write_voc(folder: Path, truth=TRUTH, extra: str = "") -> Path:
    """A VOC folder: train has all but the image "two", which val has."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for number, (name, boxes) in enumerate(truth.items()):
        (folder / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg(number, *SIZE))
        if boxes is None:
            continue
        objects = "".join(
            f"<object><name>{kind}</name>{extra}<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>"
            f"<xmax>{x2}</xmax><ymax>{y2}.0</ymax></bndbox><part><name>head</name></part></object>"
            for (x1, y1, x2, y2), kind in boxes
        )
        size = "<size><width>48</width><height>32</height><depth>3</depth></size>"
        xml = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(xml)
    lists = folder / "ImageSets" / "Main"
    (lists / "train.txt").write_text("".join(f"{name}\n" for name in truth if name != "two"))
    (lists / "val.txt").write_text("two\n")
    (lists / "dog_train.txt").write_text("a b  1\nempty -1\n")
    return folder


def write_yolo(folder: Path, truth=TRUTH) -> Path:
    """A YOLO folder with the same splits; six decimals as programs write them."""
    names = ["person", "dog"]
    for number, (name, boxes) in enumerate(truth.items()):
        split = "val" if name == "two" else "train"
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        (folder / "images" / split / f"{name}.jpg").write_bytes(jpeg(number, *SIZE))
        if boxes is None:
            continue
        lines = [
            f"{names.index(kind)} {(x1 + x2) / 96:.6f} {(y1 + y2) / 64:.6f} "
            f"{(x2 - x1) / 48:.6f} {(y2 - y1) / 32:.6f}\n"
            for (x1, y1, x2, y2), kind in boxes
        ]
        (folder / "labels" / split / f"{name}.txt").write_text("".join(lines))
    data = {
        "path": ".",
        "train": "images/train",
        "val": "images/val",
        "names": dict(enumerate(names)),
    }
    (folder / "data.yaml").write_text(yaml.safe_dump(data))
    return folder


def boxes_in(path: Path) -> dict:
    """As TRUTH: image -> corners and name of each box; and the json itself."""
    coco = json.loads(path.read_text())
    names = {entry["id"]: entry["name"] for entry in coco["categories"]}
    found = {Path(entry["file_name"]).stem: [] for entry in coco["images"]}
    stems = {entry["id"]: Path(entry["file_name"]).stem for entry in coco["images"]}
    for entry in coco["annotations"]:
        x, y, w, h = entry["bbox"]
        found[stems[entry["image_id"]]].append(((x, y, x + w, y + h), names[entry["category_id"]]))
    return found


def convert(tmp_path: Path, kind: str, *words: str) -> str:
    flags = [f"--from={kind}", f"--source={tmp_path / kind}", "--out=out", *words]
    ended = run_script(TOOL, *flags, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def configuration_of(said: str) -> dict:
    lines = said.split("the same in every silo:\n")[1].split("\nnext: ")[0]
    return yaml.safe_load(lines)


@pytest.mark.parametrize(("kind", "write"), [("voc", write_voc), ("yolo", write_yolo)])
def test_the_boxes_come_back_and_become_a_mindrecord(tmp_path, kind, write):
    write(tmp_path / kind)
    said = convert(tmp_path, kind)
    assert "train.json: 3 images, 2 of them without a box, 2 boxes" in said
    assert "val.json: 1 images, 0 of them without a box, 1 boxes" in said
    assert "taken as images without a box, first" in said
    found = {**boxes_in(tmp_path / "out/train.json"), **boxes_in(tmp_path / "out/val.json")}
    assert found == {name: boxes or [] for name, boxes in TRUTH.items()}
    config = configuration_of(said)
    order = ["dog", "person"] if kind == "voc" else ["person", "dog"]
    assert config == {"num_classes": 3, "coco_classes": ["background", *order]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    flags = ["--instance_set=out/train.json", "--mindrecord_dir=mindrecord_0", "--strict"]
    ended = run_script("generate_mindrecord.py", "--config_path=mine.yaml", *flags, cwd=tmp_path)
    assert "3 images, 2 boxes, 0 images skipped" in ended.stdout, ended.stderr
    file = str(tmp_path / "mindrecord_0" / "FasterRcnn.mindrecord")
    data = ds.MindDataset(file, columns_list=["annotation"], shuffle=False)
    rows = [row["annotation"].tolist() for row in data.create_dict_iterator(1, True)]
    expected = [[*map(int, box), order.index(name) + 1, 0] for box, name in TRUTH["a b"]]
    assert expected in rows and rows.count([[0, 0, 0, 0, 0, 1]]) == 2


def test_files_that_are_there_stay_unless_told_otherwise(tmp_path):
    write_voc(tmp_path / "voc")
    convert(tmp_path, "voc", "--splits=val")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["val.json"]
    before = (tmp_path / "out" / "val.json").read_text()
    flags = ["--from=voc", "--source=voc", "--out=out"]
    ended = run_script(TOOL, *flags, cwd=tmp_path)
    assert ended.returncode == 2 and "already there" in ended.stderr
    assert (tmp_path / "out" / "val.json").read_text() == before
    assert len(list((tmp_path / "out").iterdir())) == 1
    convert(tmp_path, "voc", "--overwrite")


def test_a_given_class_list_decides_order_and_what_is_left_out(tmp_path):
    write_yolo(tmp_path / "yolo")
    (tmp_path / "ours.yaml").write_text("num_classes: 3\ncoco_classes: [background, cow, dog]\n")
    said = convert(tmp_path, "yolo", "--classes=ours.yaml")
    assert configuration_of(said)["coco_classes"] == ["background", "cow", "dog"]
    assert "2 boxes of other classes, left out: person" in said
    assert "1 classes without a box here: cow" in said
    (tmp_path / "names.txt").write_text("dog\nperson\n")
    assert read_class_list(tmp_path / "names.txt") == ["dog", "person"]
    with pytest.raises(UserError, match="no box is of a class in it: it has cow"):
        class_names(read_yolo(tmp_path / "yolo"), ["cow"])


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (["Dog", "person"], "'dog' in the labels, 'Dog' in the list"),
        (["dog", "per son", " PERSON"], "'person' in the labels, ' PERSON' in the list"),
    ],
)
def test_a_class_that_the_list_spells_differently_is_an_error(tmp_path, listed, words):
    source = read_yolo(write_yolo(tmp_path / "yolo"))
    with pytest.raises(UserError, match=words):
        class_names(source, listed)
    assert class_names(source, ["dog", "person", "Person"])[2] == "Person"


def test_what_most_boxes_lost_and_names_that_look_alike_are_warnings(tmp_path):
    truth = {n: [((4, 5, 24, 25), "RBC"), ((0, 0, 9, 9), "RBC")] for n in "abc"}
    truth["two"] = [((4, 5, 24, 25), "rbc"), ((4, 5, 24, 25), "WBC")]
    write_voc(tmp_path / "voc", truth)
    said = convert(tmp_path, "voc")
    assert "  objects by class: RBC 6; none of WBC, rbc\n" in said
    assert (
        "WARNING: classes that differ in case or spaces only: 'RBC' (6 boxes), 'rbc' (1 b" in said
    )
    (tmp_path / "names.txt").write_text("WBC\n")
    said = convert(tmp_path, "voc", "--classes=names.txt", "--overwrite")
    assert (
        "WARNING: most boxes of the labels were left out: 7 of 8 (88%), 1 remain; is the class "
        "list right?" in said
    )


def many(count=24):
    """Images of six slides, each with a dog."""
    return {f"s{n % 6}_{n}": [((4, 5, 24, 25), "dog")] for n in range(count)}


def test_a_part_is_held_out_of_labels_without_a_validation_split(tmp_path):
    folder = write_voc(tmp_path / "voc", many())
    (folder / "ImageSets/Main/val.txt").unlink()
    (folder / "ImageSets/Main/test.txt").write_text("s0_0\n")
    words = ["--val=0.25", "--group=(s\\d)_", "--seed=3"]
    said = convert(tmp_path, "voc", *words)
    train, val, test = (
        set(boxes_in(tmp_path / "out" / f"{name}.json")) for name in ("train", "val", "test")
    )
    assert len(train | val) == 24 and test == {"s0_0"} and len(val) == 4
    assert not {name[:2] for name in train} & {name[:2] for name in val}
    assert ["images", "20", "4"] in [line.split() for line in said.splitlines()]
    assert convert(tmp_path, "voc", *words, "--overwrite") == said


def test_labels_that_are_split_already_are_not_divided(tmp_path):
    write_yolo(tmp_path / "yolo", {**many(), "two": [((4, 5, 24, 25), "person")]})
    flags = ["--from=yolo", "--source=yolo", "--out=out", "--val=0.25"]
    ended = run_script(TOOL, *flags, cwd=tmp_path)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert "the labels have the splits train, val already; leave --val out, or" in ended.stderr
    assert not (tmp_path / "out").exists()
    assert "val.json: 6 images" in convert(tmp_path, "yolo", "--val=0.25", "--splits=train")


def test_the_next_commands_can_be_pasted_whatever_the_folders_names_are(tmp_path):
    folder = tmp_path / "my hospital's"
    write_voc(folder / "voc", many())
    lists = folder / "voc/ImageSets/Main"
    (lists / "a.txt").write_text("s0_0\ns1_1\n")
    (lists / "b.txt").write_text("s2_2\n")
    (folder / "our list.yaml").write_text("num_classes: 2\ncoco_classes: [background, dog]\n")
    (lists / "val.txt").write_text("s3_3\n")
    said = convert(folder, "voc", "--splits=a,b,val", "--classes=our list.yaml")
    lines = [line for line in said.splitlines() if line.startswith("next: ")]
    for number, (line, name) in enumerate(zip(lines, "ab")):
        _, python, script, *flags = shlex.split(line)
        assert (python, script) == ("python", "generate_mindrecord.py")
        assert flags == [
            f"--config_path={folder / 'our list.yaml'}",
            f"--instance_set={folder / 'out' / name}.json",
            f"--mindrecord_dir={folder / 'out'}/mindrecord_{number}",
        ]
        ended = run_script(script, *flags, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
    assert len(lines) == 2
    assert f"--val_set={shlex.quote(str(folder / 'out/val.json'))}" in said
    assert "--config_path=our_config.yaml" in convert(folder, "voc", "--splits=a", "--overwrite")


@pytest.mark.parametrize(
    ("difficult", "crowd", "count"), [("ignore", 1, 2), ("keep", 0, 2), ("drop", None, 0)]
)
def test_difficult_and_truncated_objects(tmp_path, difficult, crowd, count):
    extra = "<truncated>1</truncated><difficult>1</difficult>"
    xml = write_voc(tmp_path / "voc", extra=extra) / "Annotations" / "two.xml"
    xml.write_text(xml.read_text().replace(extra, ""))
    convert(tmp_path, "voc", f"--difficult={difficult}")
    annotations = json.loads((tmp_path / "out" / "train.json").read_text())["annotations"]
    assert len(annotations) == count
    for entry in annotations:
        assert (entry["iscrowd"], entry["truncated"], entry["difficult"]) == (crowd, 1, 1)


def test_pixels_counted_from_0(tmp_path):
    source = read_voc(write_voc(tmp_path / "voc"), "train", first_pixel=0)
    assert source.splits["train"][0].boxes[0].corners == (5, 6, 24, 25)


def turned_jpeg(orientation: int) -> tuple[bytes, np.ndarray]:
    """A JPEG with a white rectangle that EXIF turns, and how it is shown."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[4:12, 8:32] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=100, exif=exif)
    return file.getvalue(), np.array(ImageOps.exif_transpose(Image.open(file)))


def shown_box(pixels: np.ndarray) -> tuple[int, ...]:
    ys, xs = np.nonzero(pixels[:, :, 0] > 127)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_on_images_that_exif_turns_are_turned_back(tmp_path, orientation):
    data, shown = turned_jpeg(orientation)
    (tmp_path / "a.jpg").write_bytes(data)
    header = peek(tmp_path / "a.jpg")
    height, width = shown.shape[:2]
    assert (header.size, header.shown) == (SIZE, (width, height))
    x1, y1, x2, y2 = box = shown_box(shown)
    assert header.stored(box) == (8, 4, 32, 12)
    # What training decodes is what is stored.
    (tmp_path / "a.txt").write_text(
        f"0 {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} "
        f"{(x2 - x1) / width} {(y2 - y1) / height}"
    )
    (tmp_path / "classes.txt").write_text("box\n")
    (found,) = read_yolo(tmp_path).splits["all"]
    assert found.boxes[0].corners == pytest.approx((8, 4, 32, 12)) and found.size == SIZE


def test_voc_boxes_follow_the_size_in_the_xml_file(tmp_path):
    data, shown = turned_jpeg(6)
    (tmp_path / "a.jpg").write_bytes(data)
    for (width, height), (x1, y1, x2, y2) in (((32, 48), shown_box(shown)), (SIZE, (8, 4, 32, 12))):
        (tmp_path / "a.xml").write_text(
            f"<a><size><width>{width}</width><height>{height}</height></size><object><name>n</name>"
            f"<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            "</bndbox></object></a>"
        )
        (found,) = read_voc(tmp_path).splits["all"]
        assert found.boxes[0].corners == (8, 4, 32, 12)


def test_a_width_of_thousands_of_digits_is_none(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "a.xml").write_text(voc_xml().replace("64", "6" * 5000))
    (found,) = read_voc(tmp_path).splits["all"]
    assert found.size == SIZE


def test_odd_things_in_a_voc_folder_are_counted(tmp_path):
    folder = write_voc(tmp_path / "voc")
    (folder / "JPEGImages" / "empty.jpg").write_bytes(b"no image")
    (folder / "JPEGImages" / "x.bmp").write_bytes(b"")
    (folder / "JPEGImages" / "a b.jpg").write_bytes(jpeg(0, 40, 40))
    with (folder / "ImageSets" / "Main" / "train.txt").open("a") as file:
        file.write("missing\ntwo\n")
    said = convert(tmp_path, "voc")
    for words in (
        "images of another format",
        "images that cannot be used",
        "images that are listed and not",
    ):
        assert f"1 {words}" in said
    assert "1 images of another size than their XML file says" in said
    assert "1 images are in more than one split" in said


XML = "<annotation><object><name>dog</name><bndbox>{}</bndbox></object></annotation>"
BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><a>&c;</a>'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (BOMB, "declares a document type"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "declares a document type"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', "document type"),
        ("<a>&undefined;</a>", "not valid XML"),
        ("<a>", "not valid XML"),
        ("", "not valid XML"),
        ('<?xml version="1.0" encoding="nonsense"?><a/>', "encoding 'nonsense', which is unknown"),
        (XML.format("<xmin>1</xmin>"), "object 1: ymin is None"),
        (XML.format("<xmin>one</xmin>"), "object 1: xmin is 'one', expected a number"),
        (XML.format("<xmin>inf</xmin>"), "object 1: xmin is 'inf', expected a number"),
        ("<a><object><name>dog</name></object></a>", "object 1 has no bndbox"),
        ("<a><object><bndbox/></object></a>", "object 1 has no name"),
    ],
)
def test_bad_xml_is_one_line(tmp_path, content, words):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "a.xml").write_text(content)
    with pytest.raises(UserError, match=words) as error:
        read_voc(tmp_path)
    assert str(tmp_path / "a.xml") in str(error.value)


def test_an_xml_file_of_another_size_or_encoding(tmp_path, monkeypatch):
    path = tmp_path / "a.xml"
    path.write_bytes("<a><name>é</name></a>".encode("utf-16"))
    assert read_xml(path).findtext("name") == "é"
    monkeypatch.setattr("src.data.labels.voc_xml.LARGEST", 10)
    with pytest.raises(UserError, match="no labels of one image"):
        read_xml(path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2 0.5 0.5 0.1 0.1", "class 2, expected 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5"),
        ("-1 0.5 0.5 0.1 0.1", "class -1"),
        ("dog 0.5 0.5 0.1 0.1", "'dog 0.5 0.5 0.1 0.1'"),
        ("0 0.5 0.5 0.1", "4 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9", "6 numbers"),
        ("0 24 16 10 10", "24, .*are these pixels"),
        ("0 nan 0.5 0.1 0.1", "nan"),
    ],
)
def test_bad_yolo_lines_are_named(tmp_path, line, words):
    folder = write_yolo(tmp_path / "yolo")
    path = folder / "labels" / "train" / "a b.txt"
    path.write_text(f"0 0.5 0.5 0.1 0.1\n\n{line}\n")
    with pytest.raises(UserError, match=words) as error:
        read_yolo(folder)
    assert f"{path}, line 3" in str(error.value)


def test_a_polygon_becomes_the_box_around_it(tmp_path):
    folder = write_yolo(tmp_path / "yolo")
    (folder / "labels" / "val" / "two.txt").write_text("1 0.25 0.5 0.75 0.25 0.75 0.75\n")
    assert read_yolo(folder, "val").splits["val"][0].boxes[0].corners == (12, 8, 36, 24)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("train: images/train\n", "names is None"),
        ("train: images/train\nnames: [no, dog]\n", "names has False, expected text"),
        ("train: images/train\nnames: {}\n", "expected a list"),
        ("train: images/train\nnames: {a: 0, b: 1}\n", "names has 'a', expected a number for each"),
        ("train: images/train\nnames: {0: a, 300000: b}\n", "names has 300000, expected a number"),
        ("train: images/train\nnames: {0: a, '0': b}\n", "names has a number twice"),
        ("train: images/train\nnames: {0: a, 2: b}\n", "class 1, which has no name in the list"),
        ("train: nowhere\nnames: [a, b]\n", "nowhere: no such folder"),
        ("train: 3\nnames: [a, b]\n", "train is 3"),
        ("names: [a, b]\n", "none of train, val, test"),
        ("names: !!python/object/apply:os.system [true]\n", "not valid YAML"),
        ("names: [a\n", "not valid YAML"),
        ("names: " + "[" * 2000, "not valid YAML"),
    ],
)
def test_bad_data_yaml_is_one_line(tmp_path, content, words):
    folder = write_yolo(tmp_path / "yolo")
    (folder / "data.yaml").write_text(content)
    with pytest.raises(UserError, match=words):
        read_yolo(folder)


def test_layouts_of_yolo_folders(tmp_path):
    folder = write_yolo(tmp_path / "yolo")
    (folder / "data.yaml").write_text(
        "train: ../images/train\nval: list.txt\nnames: [person, dog]\n"
    )
    (folder / "list.txt").write_text("./images/val/two.jpg\n./images/val/gone.jpg\n")
    source = read_yolo(folder)
    assert {name: len(images) for name, images in source.splits.items()} == {"train": 3, "val": 1}
    assert "listed and not there" in "".join(source.notes.lines())
    (folder / "data.yaml").unlink()
    with pytest.raises(UserError, match="not known what class 0 is"):
        read_yolo(folder)
    (folder / "classes.txt").write_text("person\ndog\n")
    assert [len(images) for images in read_yolo(folder).splits.values()] == [3, 1]
    with pytest.raises(UserError, match="--splits test: not in"):
        read_yolo(folder, "test")


@pytest.mark.parametrize("names", [["dog", "dog"], ["background", "dog"], ["", "dog"]])
def test_names_that_cannot_be_classes(tmp_path, names):
    folder = write_yolo(tmp_path / "yolo")
    with pytest.raises(UserError, match="class name"):
        class_names(read_yolo(folder), names)


def test_the_configuration_lines_load(tmp_path):
    names = ["no", "1", "ünït", 'a "b"', *(f"class {n}" for n in range(40))]
    (tmp_path / "mine.yaml").write_text(configuration_lines(names))
    assert load_config(tmp_path / "mine.yaml").coco_classes == ["background", *names]


@pytest.mark.parametrize(
    "words",
    [
        ["--from=csv", "--source=voc"],
        ["--from=voc", "--source=none"],
        ["--from=yolo", "--source=none"],
        ["--from=voc", "--source=voc", "--splits=vale"],
        ["--from=voc", "--source=voc", "--classes=none.txt"],
        ["--from=voc", "--source=empty"],
        ["--from=voc"],
    ],
)
def test_bad_flags_end_with_2_in_one_line_and_leave_nothing(tmp_path, words):
    write_voc(tmp_path / "voc")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    ended = run_script(TOOL, *words, "--out=out", cwd=tmp_path)
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1 and ended.stderr.startswith("error: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_image_of_any_size_keeps_its_boxes(tmp_path):
    small = cv2.imencode(".png", np.zeros((3, 5, 3), np.uint8))[1].tobytes()
    header = b"IHDR" + struct.pack(">II", 14000, 14000) + small[24:29]
    large = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
    (tmp_path / "a.png").write_bytes(large)
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("cell\n")
    (image,) = read_yolo(tmp_path).splits["all"]
    assert image.size == (14000, 14000) and image.boxes[0].corners == (3500, 3500, 10500, 10500)
