"""Labels and images as people bring them: the right boxes in the MindRecord, or the cause."""

import io
import json

import cv2
import mindspore.dataset as ds
import numpy as np
import pytest
from coco_files import coco_of, jpeg, write_coco
from evaluation_sets import CLASSES, tiny
from PIL import Image, ImageOps

from src.data import conversion
from src.data.conversion import SKIPPED_FILE, Summary, data_to_mindrecord_byte_image
from src.data.image_check import ORIENTATION, decoded
from src.data.mindrecord import indexed_objects, odd_objects
from src.dataset import create_fasterrcnn_dataset
from src.errors import UserError

NAME = "FasterRcnn.mindrecord"
DOG = CLASSES.index("dog")


def convert(folder, **changes) -> Summary:
    """Convert train_0.json of `folder` with classes of which 18 is dog."""
    config = tiny(
        instance_set=str(folder / "train_0.json"),
        mindrecord_dir=str(folder / "mindrecord_0"),
        **changes,
    )
    return data_to_mindrecord_byte_image(config, "coco", True, NAME, 1)


def refused(folder, **changes) -> str:
    with pytest.raises(UserError) as error:
        convert(folder, **changes)
    assert not (folder / "mindrecord_0").exists(), "something is left"
    return str(error.value)


def rows(folder) -> list[tuple[np.ndarray, list[list[int]]]]:
    """Image bytes and boxes of each row, in the file's order."""
    data = ds.MindDataset(str(folder / "mindrecord_0" / NAME), shuffle=False)
    found = list(data.create_dict_iterator(1, True))
    return [(row["image"].tobytes(), row["annotation"].tolist()) for row in found]


def boxes(folder) -> list[list[list[int]]]:
    return [annotation for _, annotation in rows(folder)]


def batch(folder, **changes):
    """The first batch of training, without augmentation, in pixels of 64x64."""
    config = tiny(flip_ratio=0.0, expand_ratio=0.0, **changes)
    data = create_fasterrcnn_dataset(config, folder / "mindrecord_0" / NAME, 1)
    return next(data.create_dict_iterator(1, True))


# ---- ids, boxes, crowds ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_id", "theirs"), [(0, "0"), ("7", 7), (7, "7.0"), ("0012", 12), (3.0, "3")]
)
def test_ids_that_differ_in_type_alone_are_matched_and_that_is_said(tmp_path, image_id, theirs):
    coco = coco_of(2)
    coco["images"][0]["id"], coco["annotations"][0]["image_id"] = image_id, theirs
    coco["annotations"][1]["category_id"] = "18"
    write_coco(tmp_path, coco)
    said = "\n".join(convert(tmp_path).lines())
    assert "1 whose image_id is text" in said and "1 whose category_id is text" in said
    assert boxes(tmp_path) == [[[4, 4, 24, 24, DOG, 0]]] * 2
    batched = batch(tmp_path)
    assert batched["label"][0][batched["valid_num"][0]].tolist() == [DOG]
    with pytest.raises(UserError, match="image_id is text"):
        convert(tmp_path, strict=True)


def test_ids_that_two_images_have_but_for_the_type_are_not_guessed(tmp_path):
    coco = coco_of(3)
    coco["images"][0]["id"], coco["images"][1]["id"] = "7", "07"
    coco["annotations"][0]["image_id"] = coco["annotations"][1]["image_id"] = 7
    write_coco(tmp_path, coco)
    said = "\n".join(convert(tmp_path).lines())
    assert "2 of an image that is not in the json, dropped" in said
    assert [len(b) for b in boxes(tmp_path)] == [1, 1, 1] and boxes(tmp_path)[0][0][-1] == 1


def everything(coco, **changes):
    for entry in coco["annotations"]:
        entry.update(changes)
    return coco


@pytest.mark.parametrize(
    ("coco", "cause"),
    [
        (everything(coco_of(2), image_id="a.jpg"), "image_id of its annotations (first 'a.jpg')"),
        (everything(coco_of(2), bbox=None), "2 boxes without bbox, dropped; write bbox as ["),
        (everything(coco_of(2), bbox=None, segmentation=[[1, 1]]), "2 boxes without bbox"),
        (everything(coco_of(2), bbox="4,4,20,20"), "2 boxes without four numbers as bbox (it is"),
        (everything(coco_of(2), category_id="dog"), "write the ids of its categories into"),
        (everything(coco_of(2), iscrowd=1), "2 boxes that are crowds (iscrowd 1); write iscrowd 0"),
        (everything(coco_of(2), iscrowd="true"), "2 boxes that are crowds"),
        ({**coco_of(2), "annotations": []}, "its list 'annotations' is empty"),
        (everything(coco_of(2), bbox=[0.1, 0.2, 0.5, 0.4]), "multiply bbox by the image's width"),
        (everything(coco_of(2), bbox=[5.1, 5.1, 0.3, 9]), "2 boxes below a pixel wide or high"),
        (everything(coco_of(2), bbox=[100, 4, 9, 9]), "2 boxes outside the image"),
        (everything(coco_of(2), bbox=[30, 20, 46, 30]), "bbox looks like x1, y1, x2, y2: 2 of"),
        (everything(coco_of(2), bbox=[9, 9, -5, 3]), "2 boxes of zero or negative size"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("strict", [False, True])
def test_labels_without_a_box_to_train_on_are_an_error_that_names_the_cause(
    tmp_path, coco, cause, strict
):
    write_coco(tmp_path, coco)
    said = refused(tmp_path, strict=strict)
    assert said.startswith(str(tmp_path)) and "train_0" in said
    assert strict or cause in said


def test_labels_of_a_larger_version_of_the_images_are_named_by_the_sizes(tmp_path):
    coco = coco_of(2, boxes=[(100, 70, 60, 80)])
    for entry in coco["images"]:
        entry.update(width=192, height=160)
    write_coco(tmp_path, coco)
    said = refused(tmp_path)
    assert "2 boxes outside the image" in said and "(48x32, the labels say 192x160)" in said


def test_boxes_in_images_that_are_skipped_are_named_as_the_cause(tmp_path):
    coco = coco_of(3)
    coco["annotations"] = coco["annotations"][:1]
    write_coco(tmp_path, coco)
    (tmp_path / "train_0" / "0.jpg").write_bytes(jpeg()[:-40])
    assert "1 boxes in images that were skipped" in refused(tmp_path)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[10, 5, 30, 5, 30, 25, 10, 25]],
        [[10, 5, 30, 5, 20, 25], [12, 8, 15, 8, 15, 25]],
        [[[10, 5], [30, 5], [30, 25]]],
        [10, 5, 30, 5, 30, 25],
        {"size": [32, 48], "counts": [32 * 10 + 5] + [20, 12] * 19 + [20, 32 * 48]},
    ],
)
def test_a_box_that_is_missing_is_taken_around_the_segmentation(tmp_path, segmentation):
    coco = coco_of(2)
    coco["annotations"][0].update(bbox=None, segmentation=segmentation)
    coco["annotations"][1].update(bbox=[], segmentation=segmentation)
    write_coco(tmp_path, coco)
    assert "2 without bbox, taken around their" in "\n".join(convert(tmp_path, strict=True).lines())
    assert boxes(tmp_path) == [[[10, 5, 30, 25, DOG, 0]]] * 2


def test_corners_among_widths_are_counted_and_no_error(tmp_path):
    write_coco(tmp_path, coco_of(1, boxes=[(30, 20, 46, 30), (20, 8, 10, 6), (3, 3, 9, 9)]))
    said = "\n".join(convert(tmp_path).lines())
    assert "1 far beyond the image that would be within it as x1, y1, x2, y2" in said
    assert boxes(tmp_path)[0][1:] == [[20, 8, 30, 14, DOG, 0], [3, 3, 12, 12, DOG, 0]]


def test_large_objects_that_overlap_the_border_a_little_are_no_corners(tmp_path):
    write_coco(tmp_path, coco_of(2, boxes=[(1, 1, 48, 32)]))
    assert "2 partly outside the image, clipped" in "\n".join(convert(tmp_path).lines())
    assert boxes(tmp_path) == [[[1, 1, 48, 32, DOG, 0]]] * 2


@pytest.mark.parametrize(
    ("value", "crowd"),
    [(1, 1), ("1", 1), ("true", 1), (True, 1), (0, 0), ("0", 0), ("false", 0), (None, 0), (2, 0)],
)
def test_iscrowd_is_read_as_number_or_word(tmp_path, value, crowd):
    coco = coco_of(1, boxes=[(4, 4, 20, 20), (5, 5, 9, 9)])
    coco["annotations"][1]["iscrowd"] = value
    write_coco(tmp_path, coco)
    said = "\n".join(convert(tmp_path).lines())
    assert ("1 of the boxes are crowds" in said) == bool(crowd)
    assert ("neither 0 nor 1" in said) == (value == 2)
    assert boxes(tmp_path)[0][1] == [5, 5, 14, 14, DOG, crowd]


# ---- more objects than a batch has room for ----------------------------------------------------


def test_crowds_take_no_objects_place_in_a_batch_and_the_room_that_is_needed_is_said(tmp_path):
    coco = coco_of(1, boxes=[(k, k, 6, 6) for k in range(8)] + [(20, 4, 9, 9), (30, 4, 9, 9)])
    for entry in coco["annotations"][:8]:
        entry["iscrowd"] = 1
    write_coco(tmp_path, coco)
    assert "num_gts" not in "\n".join(convert(tmp_path).lines())
    found = batch(tmp_path)
    assert (
        found["label"].shape == (1, 8)
        and found["valid_num"][0].tolist() == [True] * 2 + [False] * 6
    )
    scale = 64 / 48
    np.testing.assert_allclose(
        found["box"][0][:2], np.array([[20, 4, 29, 13], [30, 4, 39, 13]]) * scale, atol=0.01
    )
    for entry in coco["annotations"]:
        entry["iscrowd"] = 0
    write_coco(tmp_path, coco)
    said = convert(tmp_path).lines()[-1]
    assert "1 images have more than num_gts 8 objects" in said and "num_gts 10 holds all" in said
    assert batch(tmp_path, num_gts=10)["valid_num"].all()
    assert "num_gts" not in "\n".join(convert(tmp_path, num_gts=10).lines())
    with pytest.raises(UserError, match="num_gts 10 holds all"):
        convert(tmp_path, strict=True)


# ---- boxes by class, most of them lost ---------------------------------------------------------


def test_objects_by_class_are_said_and_that_most_boxes_were_lost(tmp_path):
    coco = coco_of(4, boxes=[(1, 1, 9, 9), (2, 2, 9, 9), (3, 3, 9, 9), (4, 4, 9, 9)])
    coco["categories"].append({"id": 7, "name": "erythrocyte"})
    coco["annotations"][0]["category_id"] = 1
    write_coco(tmp_path, coco)
    said = convert(tmp_path).lines()
    assert "  objects by class: dog 15, person 1; none of cat, bird" in said
    assert "WARNING" not in "\n".join(said)
    for entry in coco["annotations"][4:]:
        entry["category_id"] = 7
    write_coco(tmp_path, coco)
    said = convert(tmp_path).lines()
    assert "  objects by class: dog 3, person 1; none of cat, bird" in said
    assert said[-1] == (
        "  WARNING: most boxes of the labels were left out: 12 of 16 (75%), 4 remain: see above why"
    )
    counts = indexed_objects(tmp_path / "mindrecord_0" / NAME)
    assert counts.dropped == 12 and counts.per_class == {1: 1, DOG: 3}
    assert odd_objects(counts, 9)[0].startswith("most boxes of the labels were left out: 12 of 16")


# ---- the size of the file, EXIF ------------------------------------------------------------------


def test_boxes_are_clipped_to_the_file_whatever_the_json_says(tmp_path):
    coco = coco_of(3, boxes=[(30, 10, 12, 20), (40, 10, 30, 12)])
    coco["images"][0].update(width=32, height=48)
    coco["images"][1].update(width=480, height=320)
    write_coco(tmp_path, coco)
    said = "\n".join(convert(tmp_path).lines())
    assert "2 images of another size than the labels say" in said
    assert "0.jpg (48x32, the labels say 32x48)" in said
    assert "3 partly outside the image, clipped" in said
    assert boxes(tmp_path) == [[[30, 10, 42, 30, DOG, 0], [40, 10, 48, 22, DOG, 0]]] * 3
    with pytest.raises(UserError, match="another size"):
        convert(tmp_path, strict=True)


def photo(orientation, kind="JPEG") -> tuple[bytes, np.ndarray]:
    """A picture of 48x32 stored pixels with one white rectangle, and its pixels as shown."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[4:12, 8:32] = 255
    exif, file = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = orientation
    options = {"quality": 100} if kind == "JPEG" else {}
    Image.fromarray(pixels).save(file, kind, exif=exif, **options)
    return file.getvalue(), np.array(ImageOps.exif_transpose(Image.open(file)))


def white(pixels) -> list[int]:
    """x1, y1, x2, y2 of the white rectangle."""
    found = pixels.mean(axis=2) > 127
    x, y = np.flatnonzero(found.any(axis=0)), np.flatnonzero(found.any(axis=1))
    return [int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_drawn_on_an_image_as_shown_lie_on_their_object_in_the_batch(
    tmp_path, orientation, kind
):
    data, shown = photo(orientation, kind)
    x1, y1, x2, y2 = white(shown)
    coco = coco_of(2, boxes=[(x1, y1, x2 - x1, y2 - y1)])
    height, width = shown.shape[:2]
    coco["images"][0].update(width=width, height=height)
    del coco["images"][1]["width"]
    write_coco(tmp_path, coco)
    for number in range(2):
        (tmp_path / "train_0" / f"{number}.jpg").write_bytes(data)
    said = "\n".join(convert(tmp_path).lines())
    assert ("2 images that EXIF turns: boxes taken as drawn" in said) == (orientation != 1)
    assert "another size" not in said
    for image, ((*box, _, _),) in rows(tmp_path):
        assert box == white(decoded(image)) == [8, 4, 32, 12]
    found = batch(tmp_path)
    image = found["image"][0].transpose(1, 2, 0)
    bright = white(np.where(image > 0, 255, 0))
    np.testing.assert_allclose(found["box"][0][0], bright, atol=1.5)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_whose_json_has_the_stored_size_are_kept_and_their_images_counted(
    tmp_path, orientation
):
    data, _ = photo(orientation)
    write_coco(tmp_path, coco_of(2, boxes=[(8, 4, 24, 8)]))
    (tmp_path / "train_0" / "1.jpg").write_bytes(data)
    said = "\n".join(convert(tmp_path).lines())
    assert "1 images that EXIF turns: boxes kept" in said and "1.jpg" in said
    assert boxes(tmp_path) == [[[8, 4, 32, 12, DOG, 0]]] * 2


# ---- images ------------------------------------------------------------------------------------


def encoded(kind, pixels=None, **options) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 255, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(noise if pixels is None else pixels).save(file, kind, **options)
    return file.getvalue()


def test_every_skipped_image_stands_in_a_file_with_its_reason(tmp_path):
    write_coco(tmp_path, coco_of(9))
    contents = [encoded("WEBP"), encoded("GIF"), encoded("WEBP"), b"<html>404</html>", b""]
    for number, data in enumerate([*contents, jpeg()[:-9], encoded("TIFF"), b"\x1f\x8b123"]):
        (tmp_path / "train_0" / f"{number}.jpg").write_bytes(data)
    said = "\n".join(convert(tmp_path).lines())
    assert "1 images, 1 boxes, 8 images skipped" in said
    assert "0.jpg: a WebP image, not a JPEG or PNG; convert it to JPEG or PNG (and 1 more)" in said
    listed = (tmp_path / "mindrecord_0" / SKIPPED_FILE).read_text().splitlines()
    assert len(listed) == 8 and str(tmp_path / "mindrecord_0" / SKIPPED_FILE) in said
    for number, word in enumerate(["WebP", "GIF", "WebP", "HTML", "empty", "cut", "TIFF", "gzip"]):
        assert listed[number].startswith(str(tmp_path / "train_0" / f"{number}.jpg: "))
        assert word in listed[number]
    for number in range(9):
        (tmp_path / "train_0" / f"{number}.jpg").write_bytes(jpeg(number))
    assert "9 images, 9 boxes, 0 images skipped" in convert(tmp_path).lines()[0]
    assert not (tmp_path / "mindrecord_0" / SKIPPED_FILE).exists()
    (tmp_path / "train_0" / "3.jpg").write_bytes(contents[0])
    with pytest.raises(UserError, match=r"3\.jpg: a WebP image"):
        convert(tmp_path, strict=True)


def test_images_above_the_limit_are_skipped_with_their_size_and_the_key(tmp_path):
    write_coco(tmp_path, coco_of(2))
    (tmp_path / "train_0" / "1.jpg").write_bytes(jpeg(width=96, height=64))
    said = "\n".join(convert(tmp_path, max_image_pixels=6000).lines())
    assert "96x64 pixels are 0.0 million, more than max_image_pixels 6,000" in said
    assert "0 images skipped" in convert(tmp_path, max_image_pixels=96 * 64).lines()[0]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_16_bits_are_trained_on_in_their_own_range(tmp_path, channels):
    ramp = np.linspace(300, 4095, 48).astype(np.uint16)
    deep = np.repeat(np.tile(ramp, (32, 1))[:, :, None], channels, axis=2)
    write_coco(tmp_path, coco_of(2))
    (tmp_path / "train_0" / "1.jpg").write_bytes(cv2.imencode(".png", deep)[1].tobytes())
    said = "\n".join(convert(tmp_path, strict=True).lines())
    assert "1 images of 16 bits, scaled to 8 by their own range" in said and "1.jpg" in said
    pixels = decoded(rows(tmp_path)[1][0])
    expected = np.rint((ramp - 300.0) * 255 / 3795)
    assert pixels.shape == (32, 48, 3) and (pixels == expected[None, :, None]).all()
    assert (decoded((tmp_path / "train_0" / "1.jpg").read_bytes()) == pixels).all()


def test_one_file_under_several_ids_is_said(tmp_path):
    coco = coco_of(3)
    coco["images"][2]["file_name"] = "0.jpg"
    write_coco(tmp_path, coco)
    assert "1 images under several ids in the labels" in "\n".join(convert(tmp_path).lines())


# ---- the json itself ---------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_json_in_any_unicode_encoding_is_read(tmp_path, encoding):
    coco = coco_of(1)
    coco["info"] = {"description": "标注"}
    path = write_coco(tmp_path, coco)
    path.write_bytes(json.dumps(coco, ensure_ascii=False).encode(encoding))
    assert convert(tmp_path).boxes == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.decode().encode("gbk"), "iconv -f GBK -t UTF-8 train_0.json"),
        (lambda data: b"\x1f\x8b" + data, "is a compressed file; unpack it with gunzip"),
        (lambda data: b"PK\x03\x04" + data, "is a compressed file; unpack it with unzip"),
    ],
)
def test_a_json_that_is_no_unicode_text_is_refused_with_the_fix(tmp_path, change, message):
    coco = {**coco_of(1), "info": {"description": "标注"}}
    path = write_coco(tmp_path, coco)
    path.write_bytes(change(json.dumps(coco, ensure_ascii=False).encode()))
    assert message in refused(tmp_path)


def test_more_boxes_than_an_image_has_are_refused_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "MOST_BOXES", 3)
    write_coco(tmp_path, coco_of(2, boxes=[(4, 4, 20, 20)] * 4))
    assert "4 boxes in 0.jpg, expected at most 3 in an image" in refused(tmp_path)
