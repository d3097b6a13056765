"""The images and boxes to evaluate on, and the detections of batches of them."""

import io

import cv2
import numpy as np
import pytest
from coco_files import coco_of, jpeg, write_coco
from evaluation_sets import CLASSES, tiny, validation
from mindspore import Tensor
from PIL import Image

from src.data.coco import load_labels
from src.data.conversion import convert, data_to_mindrecord_byte_image
from src.data.image_check import ORIENTATION
from src.data.mindrecord import locked_folder
from src.dataset import create_fasterrcnn_dataset
from src.errors import UserError
from src.evaluation.detect import detect, prepare, within_image
from src.evaluation.image_files import ImageCheck
from src.evaluation.validation_set import open_validation

DOG = CLASSES.index("dog")


def test_a_json_keeps_its_ids_and_its_boxes_unrounded(tmp_path):
    coco = coco_of(3, boxes=((4.25, 4.5, 20.75, 20.5),))
    for number, entry in enumerate(coco["images"]):
        entry["id"] = f"scan {number}"
    for number, entry in enumerate(coco["annotations"]):
        entry["image_id"] = f"scan {number}"
    coco["annotations"][1]["area"] = 33.5
    coco["annotations"][2]["iscrowd"] = 1
    data = validation(tmp_path, coco)
    assert [truth["bbox"] for truth in data.truths] == [[4.25, 4.5, 20.75, 20.5]] * 3
    assert [truth["area"] for truth in data.truths] == [20.75 * 20.5, 33.5, 20.75 * 20.5]
    assert [truth["iscrowd"] for truth in data.truths] == [0, 0, 1]
    found = [{"image_id": 2, "category_id": 2, "score": 0.5}]
    found.append({"image_id": 2, "category_id": 3, "score": 0.5})
    assert data.as_results(found) == [{"image_id": "scan 1", "category_id": 18, "score": 0.5}]
    files = [tmp_path / data.source.stem / f"{number}.jpg" for number in range(3)]
    assert list(data.encoded()) == [(str(file), file.read_bytes()) for file in files]


def test_what_cannot_be_used_is_left_out_and_said(tmp_path):
    coco = coco_of(4)
    coco["categories"].append({"id": 3, "name": "sofa"})
    coco["annotations"][0]["category_id"] = 3
    coco["annotations"][1]["bbox"] = [3, 3, 0, 9]
    data = validation(tmp_path, coco, eval_limit=3)
    assert (len(data), len(data.truths), sorted(data.categories)) == (3, 1, [1, 2])
    said = str(data)
    assert "1 boxes of category 'sofa', not in coco_classes" in said
    assert "1 boxes of zero or negative size" in said


def test_files_under_several_ids_are_said(tmp_path):
    coco = coco_of(4)
    assert "several ids" not in str(validation(tmp_path, coco))
    for entry in coco["images"][1:]:
        entry["file_name"] = "1.jpg"
    said = str(validation(tmp_path, coco, eval_limit=3))
    assert said.endswith(
        "; 1 file is listed under several ids, first 1.jpg (ids 2, 3): each id counts as an image "
        "of its own"
    )


def test_a_mindrecord_is_numbered_and_keeps_crowds(tmp_path):
    coco = coco_of(3)
    coco["annotations"][1]["iscrowd"] = 1
    coco["annotations"].pop()
    path = write_coco(tmp_path, coco)
    folder = tmp_path / "mindrecord_4"
    config = tiny(instance_set=str(path), mindrecord_dir=str(folder))
    data_to_mindrecord_byte_image(config, "coco", True, "FasterRcnn.mindrecord", 1)
    config.val_set = str(tmp_path / "mindrecord_{worker}")
    shard, direct = open_validation(config, worker=4), validation(tmp_path, coco)
    assert shard.image_ids == [0, 1, 2] and shard.truths == direct.truths
    assert [truth["iscrowd"] for truth in shard.truths] == [0, 1]
    contents = [content for _, content in shard.encoded()]
    assert contents == [content for _, content in direct.encoded()]
    config.eval_limit = 2
    assert [len(open_validation(config, 4)), len(list(open_validation(config, 4).encoded()))] == [
        2,
        2,
    ]
    config.coco_classes = CLASSES[:2]
    with pytest.raises(UserError, match="class 2 is 'dog' there and none .2 names. here"):
        open_validation(config, worker=4)


def test_a_class_number_that_the_list_lacks_is_refused_in_a_file_without_a_list(tmp_path):
    config = tiny(instance_set=str(write_coco(tmp_path, coco_of(3))))
    labels = load_labels(config)
    labels.classes = []
    with locked_folder(tmp_path / "mindrecord_4"):
        convert(labels, tmp_path / "mindrecord_4" / "FasterRcnn.mindrecord")
    config.val_set = str(tmp_path / "mindrecord_4")
    assert len(open_validation(config)) == 3
    config.coco_classes = CLASSES[:2]
    with pytest.raises(UserError, match="a box of class 2, and coco_classes lists 2 names"):
        open_validation(config, worker=4)


def without_categories(coco):
    coco["categories"] = [{"id": 18, "name": "sofa"}]


def without_boxes(coco):
    coco["annotations"] = []


def crowds_only(coco):
    for entry in coco["annotations"]:
        entry["iscrowd"] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_categories, "none of its categories is in coco_classes .it has sofa."),
        (without_boxes, "no annotated box in 5 images"),
        (crowds_only, "no annotated box in 5 images.*crowds do not count"),
    ],
)
def test_a_set_without_anything_to_measure_is_refused(tmp_path, change, message):
    coco = coco_of(5)
    change(coco)
    with pytest.raises(UserError, match=message):
        validation(tmp_path, coco)


def test_a_missing_set_and_missing_images_are_refused(tmp_path):
    with pytest.raises(UserError, match="val_set is empty"):
        open_validation(tiny())
    with pytest.raises(UserError, match="val_set gone.json: no such file"):
        open_validation(tiny(val_set="gone.json"))
    with pytest.raises(UserError, match="no such MindRecord file"):
        open_validation(tiny(val_set=str(tmp_path)))
    path = write_coco(tmp_path, coco_of(3))
    (tmp_path / "train_0" / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"1.jpg: no such image \(1 of the 3 images"):
        open_validation(tiny(val_set=str(path)))
    assert len(open_validation(tiny(val_set=str(path), eval_limit=1))) == 1


def test_images_are_prepared_as_by_the_data_pipeline(tmp_path):
    path = write_coco(tmp_path, coco_of(3))
    folder = tmp_path / "mindrecord_0"
    for keep_ratio in (True, False):
        config = tiny(instance_set=str(path), mindrecord_dir=str(folder), keep_ratio=keep_ratio)
        data_to_mindrecord_byte_image(config, "coco", True, "FasterRcnn.mindrecord", 1)
        data = create_fasterrcnn_dataset(
            config, str(folder / "FasterRcnn.mindrecord"), 3, is_training=False
        )
        (expected,) = data.create_dict_iterator(num_epochs=1, output_numpy=True)
        for number in range(3):
            image, shape = prepare(jpeg(number), config)
            np.testing.assert_array_equal(image, expected["image"][number])
            np.testing.assert_array_equal(shape, expected["image_shape"][number])


def grey(level, height=40, width=20):
    return cv2.imencode(".png", np.full((height, width, 3), level, np.uint8))[1].tobytes()


def test_the_last_batch_is_filled_and_its_filling_not_counted():
    config = tiny(test_batch_size=3, test_max_per_img=2)
    sizes = []

    def infer(images, metas):
        """One box whose score is the image's brightness, one outside, two weak ones."""
        sizes.append(images.shape)
        bright = images.asnumpy()[:, 0, 0, 0] / 10 + 0.5
        rows = np.zeros((len(bright), 4, 5), np.float32)
        rows[:, :] = [2, 2, 90, 90, 0.01]
        rows[:, 1] = [30, 2, 90, 90, 0.99]
        rows[:, 0, 4] = bright
        labels = np.tile(np.arange(4, dtype=np.int32)[None, :, None], (len(bright), 1, 1))
        return Tensor(rows), Tensor(labels), Tensor(np.ones((len(bright), 4, 1), bool))

    levels = [10, 60, 110, 160, 210]
    images = [(str(level), grey(level)) for level in levels]
    found = list(detect(infer, config, images))
    assert sizes == [(3, 3, 64, 64)] * 2 and len(found) == 5
    scores = [boxes[0, 4] for boxes, _ in found]
    assert scores == sorted(scores) and len(set(scores)) == 5
    for boxes, labels in found:
        assert labels.tolist() == [0, 2]
        assert boxes[0, :4].tolist() == [2, 2, 20, 40]


def test_images_that_do_not_decode_are_left_out_and_said(capsys):
    broken = bytearray(jpeg(width=320, height=200))
    broken[20000:24000] = np.random.default_rng(0).bytes(4000)
    deep = np.arange(32 * 48, dtype=np.uint16).reshape(32, 48)
    contents = [jpeg(0), bytes(broken), cv2.imencode(".png", deep)[1].tobytes(), b"GIF89a", jpeg(1)]
    check = ImageCheck([(f"scan {n}", data) for n, data in enumerate(contents)], 10**6)
    assert [name for name, _ in check] == ["scan 0", "scan 2", "scan 4"]
    assert [number for number, _ in check.sound] == [1, 3, 5]
    check.report()
    said = capsys.readouterr().err
    assert "scan 1 is left out of the evaluation: its pixels do not decode" in said
    assert "scan 3 is left out of the evaluation: a GIF image" in said
    assert "1 images of 16 bits are scaled to 8 by their own range" in said


def test_boxes_on_an_image_as_exif_turns_it_are_measured_where_its_pixels_are(tmp_path):
    coco = coco_of(3, boxes=((4, 2, 20, 10),))
    coco["images"][1].update(width=32, height=48)
    path = write_coco(tmp_path, coco, "val.json")
    exif, file = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = 6
    Image.open(io.BytesIO(jpeg())).save(file, "JPEG", exif=exif)
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "val" / name).write_bytes(file.getvalue())
    data = open_validation(tiny(val_set=str(path)))
    assert "1 images that EXIF turns" in str(data)
    # Shown, the image is turned to the right: what is left there is below in the file.
    assert [truth["bbox"] for truth in data.truths] == [
        [4, 2, 20, 10],
        [2, 8, 10, 20],
        [4, 2, 20, 10],
    ]
    found = [
        {"image_id": number, "category_id": DOG, "score": 0.5, "bbox": truth["bbox"]}
        for number, truth in enumerate(data.truths, 1)
    ]
    assert [entry["bbox"] for entry in data.as_results(found)] == [[4, 2, 20, 10]] * 3


def test_odd_entries_are_read_as_for_training(tmp_path):
    coco = coco_of(4)
    coco["annotations"][0]["image_id"] = "1"
    coco["annotations"][1].update(iscrowd="1", area=-5)
    coco["annotations"][2].update(bbox=None, segmentation=[[4, 4, 24, 4, 24, 24]])
    coco["annotations"][3].update(bbox="4,4,9,9")
    data = validation(tmp_path, coco)
    assert [truth["bbox"] for truth in data.truths] == [[4, 4, 20, 20]] * 3
    assert [truth["area"] for truth in data.truths] == [400] * 3
    assert [truth["iscrowd"] for truth in data.truths] == [0, 1, 0]
    said = str(data)
    for what in ("image_id is text", "negative area", "around their segmentation", "it is text"):
        assert f"1 boxes {what}" in said or what in said


def test_boxes_are_clipped_to_the_image():
    boxes = np.array([[-3, 5, 30, 70, 0.5], [21, 1, 22, 2, 0.5], [1, 1, 1, 9, 0.5]], np.float32)
    clipped, sound = within_image(boxes, 40, 20)
    assert clipped[0].tolist() == [0, 5, 20, 40, 0.5] and boxes[0, 0] == -3
    assert sound.tolist() == [True, False, False]
