"""VOC folders as people bring them: each box at its image, or one line that says why not."""

import random
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from coco_files import run_script
from label_folders import boxes_of, png, voc_xml, write_files

from src.data.labels.convert import convert_labels
from src.data.labels.voc import read_voc
from src.errors import UserError

IMAGES, XML = "JPEGImages", "Annotations"
BOX = [("cell", (10, 10, 30, 25))]


def other(name: str, box=(1, 1, 5, 5)) -> str:
    return voc_xml(name, "wbc", box)


OTHER = [("wbc", (0, 0, 5, 5))]


@pytest.mark.parametrize(
    ("word", "crowd"),
    [
        *((word, True) for word in ("1", "true", "TRUE", "Yes", " 1\n")),
        *((word, False) for word in ("0", "", "Unspecified", "False", "0.0", "no", "none", "2")),
    ],
)
def test_difficult_is_one_true_or_yes_and_nothing_else(tmp_path, word, crowd):
    xml = voc_xml(extra=f"<difficult>{word}</difficult><truncated>{word}</truncated>")
    write_files(tmp_path, {f"{IMAGES}/a.jpg": None, f"{XML}/a.xml": xml})
    (image,) = read_voc(tmp_path).splits["all"]
    assert image.boxes[0].crowd is crowd
    assert image.boxes[0].flags == ({"difficult": 1, "truncated": 1} if crowd else {})


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # The XML file's name says nothing of the image.
        ({"a.jpg": None, "a.xml.xml": voc_xml()}, {"a.jpg": BOX}),
        ({"a.jpg": None, "a.jpg.xml": voc_xml("")}, {"a.jpg": BOX}),
        ({"a.jpg": None, "a.xml.xml": voc_xml("")}, {"a.jpg": BOX}),
        ({"a.jpg": None, "else.xml": voc_xml()}, {"a.jpg": BOX}),
        ({"a.jpg": None, "a.XML": voc_xml()}, {"a.jpg": BOX}),
        ({"a.jpg": None, "b.jpg": None, "b.xml": voc_xml()}, {"a.jpg": BOX, "b.jpg": []}),
        # <filename> is spelt otherwise than the file.
        ({"IMG_1.JPG": None, "else.xml": voc_xml("img_1.jpg")}, {"IMG_1.JPG": BOX}),
        ({"IMG_1.jpg": None, "img_1.xml": voc_xml("")}, {"IMG_1.jpg": BOX}),
        ({"u\u0308.jpg": None, "else.xml": voc_xml("\u00fc.jpg")}, {"u\u0308.jpg": BOX}),
        ({"my cell.jpg": None, "else.xml": voc_xml("my%20cell.jpg")}, {"my cell.jpg": BOX}),
        # <filename> is none that is there.
        ({"a.jpg": None, "a.xml": voc_xml("000.jpg")}, {"a.jpg": BOX}),
        ({"a.png": None, "a.xml": voc_xml("a.jpg")}, {"a.png": BOX}),
        ({"a.jpg": None, "a.xml": voc_xml("a")}, {"a.jpg": BOX}),
        ({"a.jpg": None, "else.xml": voc_xml("a")}, {"a.jpg": BOX}),
        ({"a.jpg": None, "else.xml": voc_xml("C:\\\\data\\\\a.jpg")}, {"a.jpg": BOX}),
        ({"a.jfif": None, "a.xml": voc_xml("a.jfif")}, {"a.jfif": BOX}),
        ({"img.001.jpg": None, "img.001.xml": voc_xml("")}, {"img.001.jpg": BOX}),
        # Two images of one stem.
        ({"a.jpg": None, "a.png": None, "a.xml": voc_xml()}, {"a.jpg": BOX, "a.png": []}),
        ({"a.jpg": None, "a.png": None, "a.xml": voc_xml("a.png")}, {"a.jpg": [], "a.png": BOX}),
        # Copies that kept the <filename>, and files that were swapped.
        (
            {"a.jpg": None, "b.jpg": None, "a.xml": voc_xml(), "b.xml": other("a.jpg")},
            {"a.jpg": BOX, "b.jpg": OTHER},
        ),
        (
            {"a.jpg": None, "b.jpg": None, "a.xml": voc_xml("b.jpg"), "b.xml": other("a.jpg")},
            {"a.jpg": OTHER, "b.jpg": BOX},
        ),
        ({"a.jpg": None, "a.xml": voc_xml(), "a.xml.xml": voc_xml()}, {"a.jpg": BOX}),
        # What macOS puts into archives.
        ({"a.jpg": None, "._a.jpg": "x", "a.xml": voc_xml(), "._a.xml": "\0"}, {"a.jpg": BOX}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("apart", [True, False])
def test_an_image_enters_once_with_its_own_boxes(tmp_path, files, expected, apart):
    def place(name):
        folder = (XML if name.lower().endswith(".xml") else IMAGES) if apart else "."
        return f"{folder}/{name}"

    write_files(tmp_path, {place(name): content for name, content in files.items()})
    assert boxes_of(read_voc(tmp_path)) == {"all": expected}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"a.jpg": None, "a.xml": voc_xml(), "b.xml": other("a.jpg")},
            "a.xml and .*b.xml are both",
        ),
        ({"a.jpg": None, "a.png": None, "a.xml": voc_xml("")}, "may be of .*a.jpg or .*a.png"),
        (
            {"a.jpg": None, "b.xml": "<annotation><filename>a.jpg</filename>"},
            "b.xml: not valid XML",
        ),
    ],
)
def test_labels_of_no_clear_image_are_refused(tmp_path, files, words):
    with pytest.raises(UserError, match=words):
        read_voc(write_files(tmp_path, files))


@pytest.mark.parametrize(
    ("line", "images"),
    [
        ("a", ["a.jpg"]),
        ("a.jpg", ["a.jpg"]),
        ("a.JPG", ["a.jpg"]),
        ("a.xml", ["a.jpg"]),
        ("JPEGImages/a.jpg", ["a.jpg"]),
        ("VOCdevkit/VOC2007/JPEGImages/a.jpg", ["a.jpg"]),
        ("/home/x/VOC/JPEGImages/a", ["a.jpg"]),
        ("data\\JPEGImages\\a.jpg", ["a.jpg"]),
        ("x64\\Release\\data\\a.jpg", ["a.jpg"]),
        ("./JPEGImages/a.jpg ./Annotations/a.xml", ["a.jpg"]),
        ("a  1\nb -1", ["a.jpg", "b.png"]),
        ("scan 1\r\nscan 0\r\n\r\n", ["scan 1.jpg", "scan 0.jpg"]),
        ("scan 1 -1\nscan 0 1", ["scan 1.jpg", "scan 0.jpg"]),
        ("a\na.jpg", ["a.jpg"]),
        ("a\nnone", ["a.jpg"]),
        ("\ufeffa", ["a.jpg"]),
    ],
)
def test_lists_name_images_in_many_ways(tmp_path, line, images):
    files = {f"{IMAGES}/{name}": None for name in ("a.jpg", "b.png", "scan 0.jpg", "scan 1.jpg")}
    files |= {f"{XML}/{name.split('.')[0]}.xml": voc_xml(name.split("/")[1]) for name in files}
    files = {name.replace(f"{XML}/{IMAGES}", XML): content for name, content in files.items()}
    write_files(tmp_path, {**files, "ImageSets/Main/train.txt": line})
    assert boxes_of(read_voc(tmp_path)) == {"train": dict.fromkeys(images, BOX)}


def listed(**lists: str) -> dict:
    files = {f"{IMAGES}/{name}.jpg": None for name in "abc"}
    files |= {f"{XML}/{name}.xml": voc_xml(f"{name}.jpg") for name in "abc"}
    return {**files, **{f"ImageSets/Main/{name}.txt": text for name, text in lists.items()}}


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (listed(train="a", valid="b"), {"train": ["a"], "val": ["b"]}),
        (listed(Training="a", Validation="b"), {"train": ["a"], "val": ["b"]}),
        (listed(Train="a", Test="c"), {"train": ["a"], "test": ["c"]}),
        (listed(train="a", val="b", valid="c"), {"train": ["a"], "val": ["b"]}),
        (listed(trainval="a\nb", test="c"), {"trainval": ["a", "b"], "test": ["c"]}),
        (listed(train="a", val="b", test="gone"), {"train": ["a"], "val": ["b"], "test": []}),
        (listed(default="a\nb\nc"), {"default": ["a", "b", "c"]}),
        (
            {f"{split}/{name}": content for split, x in (("train", "a"), ("valid", "b"))
             for name, content in ((f"{x}.jpg", None), (f"{x}.xml", voc_xml(f"{x}.jpg")))},
            {"train": ["a"], "val": ["b"]},
        ),
        (
            {f"{split}/{name}": content for split in ("train", "valid")
             for name, content in ((f"{IMAGES}/a.jpg", None), (f"{XML}/a.xml", voc_xml()))},
            {"train": ["a"], "val": ["a"]},
        ),
        (
            {"train_list.txt": "JPEGImages/a.jpg Annotations/a.xml", "val_list.txt": "b",
             "labels.txt": "cell", **listed()},
            {"train": ["a"], "val": ["b"]},
        ),
    ],
)  # fmt: skip
def test_splits_by_their_usual_names(tmp_path, files, splits):
    found = boxes_of(read_voc(write_files(tmp_path, files)))
    expected = {split: {f"{name}.jpg": BOX for name in names} for split, names in splits.items()}
    assert found == expected


def test_one_name_in_two_folders_is_told_apart_by_folder_or_refused(tmp_path):
    files = {f"{IMAGES}/{folder}/f.jpg": None for folder in ("v1", "v2")}
    xmls = {"v1/f.xml": voc_xml("f.jpg"), "v2/f.xml": other("f.jpg")}
    paths = {"x.xml": voc_xml("v1/f.jpg"), "y.xml": other("C:\\d\\v2\\f.jpg")}
    for place, these in (("near", xmls), ("path", paths)):
        these = {f"{XML}/{name}": text for name, text in these.items()}
        images = read_voc(write_files(tmp_path / place, {**files, **these})).splits["all"]
        assert [(image.path.parent.name, image.boxes[0].name) for image in images] == [
            ("v1", "cell"), ("v2", "wbc")
        ]  # fmt: skip
    with pytest.raises(
        UserError, match="f.xml: it may be of .*v1/f.jpg or .*v2/f.jpg; write which"
    ):
        read_voc(write_files(tmp_path / "flat", {**files, f"{XML}/f.xml": voc_xml("f.jpg")}))


def test_what_is_not_taken_is_named(tmp_path):
    write_files(tmp_path, {**listed(train="a", extra="b"), f"{XML}/lost.xml": voc_xml("lost.jpg")})
    said = "\n".join(read_voc(tmp_path).notes.lines())
    assert "extra.txt, 1 images" in said and "--splits=extra takes it" in said
    assert "1 images in no list, left out" in said and "c.jpg" in said
    assert "1 XML files without an image" in said
    assert boxes_of(read_voc(tmp_path, "extra")) == {"extra": {"b.jpg": BOX}}


def test_a_list_of_images_that_are_not_there_is_explained(tmp_path):
    write_files(tmp_path, listed(train="x/E\nx/D"))
    with pytest.raises(UserError, match="none of the 2 images in .*train.txt is there, first x/E"):
        read_voc(tmp_path)
    write_files(tmp_path, {f"{IMAGES}/new/d.jpg": None, **listed(train="old/d.jpg")})
    with pytest.raises(
        UserError, match="new/d.jpg is there: if that is the image, correct the fold"
    ):
        read_voc(tmp_path)
    write_files(tmp_path, listed(train="a", test="gone"))
    with pytest.raises(UserError, match="none of the 1 images in .*test.txt"):
        read_voc(tmp_path, "train,test")


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("gb2312", "gb2312"), ("GB2312", "gbk"), ("GBK", "gbk"), ("gb18030", "gb18030"),
        ("big5", "big5"), ("shift_jis", "shift_jis"), ("utf8", "utf-8"), ("UTF-8", "utf-8"),
        ("utf-16", "utf-16"), (None, "utf-8"), (None, "utf-8-sig"), (None, "utf-16"),
    ],
)  # fmt: skip
def test_declared_encodings_are_read(tmp_path, declared, encoding):
    head = "" if declared is None else f'<?xml version="1.0" encoding="{declared}"?>\n'
    text = head + voc_xml("白.jpg", "白血")
    write_files(tmp_path, {f"{IMAGES}/白.jpg": None, f"{XML}/x.xml": text.encode(encoding)})
    assert boxes_of(read_voc(tmp_path)) == {"all": {"白.jpg": [("白血", BOX[0][1])]}}


@pytest.mark.parametrize(
    ("head", "encoding", "words"),
    [
        ("", "gbk", "is not UTF-8, it may be GBK; save it as UTF-8"),
        ('<?xml version="1.0" encoding="utf-8"?>', "gbk", "is not utf-8, as encoding='utf-8' says"),
        ('<?xml version="1.0" encoding="gbk"?>', "utf-8", "declares the encoding gbk and is UTF-8"),
        ('<?xml version="1.0" encoding="utf-16"?>', "utf-8", "declares the .* utf-16 and is UTF-8"),
        ('<?xml version="1.0" encoding="klingon"?>', "utf-8", "'klingon', which is unknown; save"),
        ("", "utf-16-le", "looks like UTF-16 without a byte order mark; save it as UTF-8"),
    ],
)
def test_other_encodings_are_named_with_the_fix(tmp_path, head, encoding, words):
    text = (head + voc_xml(name="红细胞")).encode(encoding)
    write_files(tmp_path, {f"{IMAGES}/a.jpg": None, f"{XML}/a.xml": text})
    with pytest.raises(UserError, match=words) as error:
        read_voc(tmp_path)
    assert str(tmp_path / XML / "a.xml") in str(error.value)


def test_boxes_without_an_extent_are_counted_and_not_written(tmp_path):
    xmls = {f"{XML}/{n}.xml": voc_xml(f"{n}.jpg", box=box) for n, box in enumerate(
        [(30, 11, 11, 25), (11, 25, 30, 11), (30, 25, 11, 11), (11, 11, 30, 25), (5, 5, 5, 5)]
    )}  # fmt: skip
    write_files(tmp_path, {**xmls, **{f"{IMAGES}/{n}.jpg": None for n in range(5)}})
    source = read_voc(tmp_path)
    assert [len(image.boxes) for image in source.splits["all"]] == [0, 0, 0, 1, 1]
    assert "3 boxes without an extent" in "".join(source.notes.lines())


CVAT = '<annotations><image name="a.jpg"><box label="cell" xtl="1"/></image></annotations>'


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        (
            voc_xml().replace("</object>", "<bndbox/></object>"),
            "object 1 has several bndbox, expect",
        ),
        (CVAT, "is CVAT's XML of all images, not VOC's; export as Pascal VOC or COCO"),
    ],
    ids=["two boxes", "CVAT"],
)
def test_what_would_lose_boxes_is_refused(tmp_path, xml, words):
    write_files(tmp_path, {"a.jpg": None, "labels.xml": xml})
    with pytest.raises(UserError, match=words):
        read_voc(tmp_path)


def test_objects_within_another_element_are_read(tmp_path):
    xml = (
        voc_xml().replace("<object>", "<objects><object>").replace("/object>", "/object></objects>")
    )
    write_files(tmp_path, {"a.jpg": None, "a.xml": xml})
    assert boxes_of(read_voc(tmp_path))["all"]["a.jpg"] == BOX


def test_an_empty_list_of_images_is_said(tmp_path):
    lists = {"ImageSets/Main/train.txt": "a\n", "ImageSets/Main/val.txt": ""}
    folder = write_files(tmp_path, {f"{IMAGES}/a.jpg": None, f"{XML}/a.xml": voc_xml(), **lists})
    said = convert_labels(read_voc(folder), ["cell"], tmp_path / "out", False)
    assert "  no image in the split val: no val.json" in said


def test_boxes_in_parts_of_the_image_are_refused(tmp_path):
    write_files(tmp_path, {"a.jpg": None, "a.xml": voc_xml(box=(0.1, 0.2, 0.5, 0.75))})
    with pytest.raises(UserError, match="a.xml: object 1: .* are parts of the image"):
        read_voc(tmp_path)


def test_all_bad_files_are_named_in_one_run(tmp_path):
    files = {f"{IMAGES}/{n}.jpg": None for n in range(6)}
    files |= {f"{XML}/{n}.xml": "<a>" for n in range(5)} | {f"{XML}/5.xml": voc_xml("5.jpg")}
    write_files(tmp_path / "voc", files)
    words = ["--from=voc", "--source=voc", "--out=out"]
    ended = run_script("tools/convert_labels.py", *words, cwd=tmp_path)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1
    assert "5 faults in the labels, first" in ended.stderr and "0.xml" in ended.stderr
    lines = (tmp_path / "out" / "label_notes.txt").read_text().splitlines()
    assert [line.split(": ")[0][-5:] for line in lines] == [f"{n}.xml" for n in range(5)]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["label_notes.txt"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        # A level too high, in ways that the names of folders do not tell.
        (["set/1.xml", "set/pictures/1.jpg"], "give --source=.*/top/set$"),
        (["set/annotations/1.xml", "set/pictures/1.jpg"], "give --source=.*/top/set$"),
        (["set/boxes/1.xml", "set/pictures/1.jpg"], "move them to folders Annotations and JPEGI"),
        (["scan_1.xml", "1.jpg"], "rename them alike, or write the images' names into <filename>"),
    ],
)
def test_xml_files_of_which_none_is_an_images_are_an_error_that_says_what_to_do(
    tmp_path, files, words
):
    write_files(
        tmp_path / "top",
        {
            name.replace("1.", f"{number}."): voc_xml("") if name.endswith("xml") else None
            for name in files
            for number in (1, 2)
        },
    )
    with pytest.raises(UserError, match=words) as error:
        read_voc(tmp_path / "top")
    assert "none of its 2 XML files belongs to one of its 2 images" in str(error.value)
    found = re.search("give --source=(.*)", str(error.value))
    if found:
        assert len(boxes_of(read_voc(Path(found[1])))["all"]) == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (".", "it has no Annotations, .*/kit/VOC2012 has; give --source=.*VOC2012"),
        ("kit", "give --source=.*VOC2012"),
        ("kit/VOC2012/JPEGImages", "a part of the data set; give --source=.*VOC2012"),
        ("kit/VOC2012/Annotations", "a part of the data set; give --source=.*VOC2012"),
        ("photos", "no box in the labels of 1 images: 1 images without an XML"),
        ("xmls", "no JPEG or PNG .*: 1 XML files without an image"),
    ],
)
def test_another_folder_of_the_data_set_is_named(tmp_path, given, words):
    write_files(tmp_path / "kit/VOC2012", {f"{IMAGES}/a.jpg": None, f"{XML}/a.xml": voc_xml()})
    write_files(tmp_path, {"names.txt": "cell\n", "photos/a.jpg": None, "xmls/a.xml": voc_xml()})
    flags = ["--from=voc", f"--source={given}", "--out=out", "--classes=names.txt"]
    ended = run_script("tools/convert_labels.py", *flags, cwd=tmp_path)
    assert ended.returncode == 2 and not (tmp_path / "out").exists()
    (line,) = ended.stderr.splitlines()
    assert re.search(words, line), line


def test_only_difficult_objects_are_nothing_to_train_on(tmp_path):
    xml = voc_xml(extra="<difficult>1</difficult>")
    write_files(tmp_path / "voc", {"a.jpg": None, "a.xml": xml})
    flags = ["--from=voc", "--source=voc", "--out=out"]
    ended = run_script("tools/convert_labels.py", *flags, cwd=tmp_path)
    assert ended.returncode == 2 and "give --difficult=keep" in ended.stderr
    ended = run_script("tools/convert_labels.py", *flags, "--difficult=keep", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr


def test_linked_folders_are_looked_into(tmp_path):
    write_files(tmp_path / "disk", {"a.jpg": None})
    write_files(tmp_path / "voc", {f"{XML}/a.xml": voc_xml()})
    (tmp_path / "voc" / IMAGES).mkdir()
    (tmp_path / "voc" / IMAGES / "part").symlink_to(tmp_path / "disk")
    (tmp_path / "voc" / IMAGES / "round").symlink_to(tmp_path / "voc")
    assert boxes_of(read_voc(tmp_path / "voc"))["all"]["a.jpg"] == BOX


def test_a_webp_by_the_name_of_a_jpeg_is_left_out_with_the_reason(tmp_path):
    webp = b"RIFF\x10\0\0\0WEBPVP8 "
    write_files(tmp_path, {"a.jpg": None, "a.xml": voc_xml(), "b.jpg": webp, "c.webp": webp})
    source = read_voc(tmp_path)
    assert list(boxes_of(source)["all"]) == ["a.jpg"]
    said = "\n".join(source.notes.lines())
    assert "images that cannot be used, left out, first " in said and "b.jpg: " in said
    assert "1 images of another format than JPEG and PNG" in said


@pytest.mark.parametrize("seed", range(4))
def test_random_sets_are_read_as_another_parser_reads_them(tmp_path, seed):
    rng, files, truth = random.Random(seed), {}, {}
    for number in range(12):
        name = f"{rng.choice(['', 'sub/'])}im {number}.{rng.choice(['jpg', 'png', 'JPG'])}"
        boxes = []
        for _ in range(rng.randrange(4)):
            x1, x2 = sorted(rng.sample(range(1, 65), 2))
            y1, y2 = sorted(rng.sample(range(1, 49), 2))
            boxes.append((x1, y1, x2, y2))
        objects = [voc_xml(box=box).split("</size>")[1].split("</annotation>")[0] for box in boxes]
        base = name.split("/")[-1]
        xml = f"<annotation><filename>{base}</filename>{''.join(objects)}</annotation>"
        stem = rng.choice([base.split(".")[0], f"x{number}"])
        place = f"{XML}/{'sub/' if '/' in name else ''}{stem}.xml"
        files |= {f"{IMAGES}/{name}": png() if name.endswith("png") else None, place: xml}
        found = ElementTree.fromstring(xml).iter("bndbox")
        truth[base] = [
            ("cell", tuple(int(b.find(k).text) - (k in ("xmin", "ymin"))
                           for k in ("xmin", "ymin", "xmax", "ymax"))) for b in found
        ]  # fmt: skip
    assert boxes_of(read_voc(write_files(tmp_path, files))) == {"all": truth}
