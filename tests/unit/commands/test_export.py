"""Exported files against the detector: the same boxes, of both backbones."""

import subprocess
import sys

import mindspore as ms
import numpy as np
import onnxruntime
import pytest
from coco_files import jpeg
from commands import TINY, refused, succeed
from evaluation_sets import tiny
from mindspore import Tensor
from onnx import TensorProto, helper

from src.commands import export
from src.commands.export import Agreement, agreement, load_mindir, onnx_detections, write_mindir
from src.data.augmentation import preprocess_fn
from src.data.coco import NO_BOX
from src.errors import UserError
from src.evaluation.detect import detect
from src.export.onnx_model import GraphBuilder, detector_model, pooled
from src.FasterRcnn.cpu.compiled import kernels_usable, library_operators
from src.FasterRcnn.cpu.roi_kernels import pool_forward
from src.FasterRcnn.faster_rcnn import FasterRcnn_Infer, generator_img_meta
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet
from src.model_utils.config import PROJECT_DIR

LEVELS = ["P2", "P3", "P4", "P5"]


@pytest.fixture(scope="module", autouse=True)
def graph_mode():
    ms.set_context(mode=ms.GRAPH_MODE)


def lively(config, seed=5):
    """A detector whose scores and offsets differ from box to box, and whose statistics count."""
    net = Faster_Rcnn_Resnet(config)
    rng = np.random.default_rng(seed)
    for parameter in net.get_parameters():
        shape = parameter.shape
        if parameter.name.endswith(("moving_variance", "gamma")):
            values = rng.uniform(0.5, 1.5, shape)
        elif len(shape) == 1:
            values = rng.normal(0, 0.1, shape)
        else:
            fan = np.prod(shape[1:]) if len(shape) == 4 else shape[0]
            gain = 0.1 if "reg" in parameter.name else 1.0
            values = rng.normal(0, np.sqrt(gain / fan), shape)
        parameter.set_data(Tensor(values.astype(np.float32)))
    return net


def images(count=5):
    sizes = [(48, 32), (100, 40), (30, 90), (64, 64), (200, 150)]
    return [(f"image {i}", jpeg(i, *sizes[i % 5])) for i in range(count)]


def onnx_bytes(net, config):
    weights = {p.name: p.asnumpy() for p in net.get_parameters()}
    return detector_model(weights, config).SerializeToString()


def onnx_session(net, config):
    return onnxruntime.InferenceSession(onnx_bytes(net, config))


def assert_agree(found):
    assert found and found.alone == 0, found
    assert found.boxes > 50 and found.pixels < 0.01 and found.score < 1e-4, found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"backbone": "resnet_v1_50"},
        pytest.param(
            {"backbone": "resnet_v1_101", "resnet_block": [1, 1, 3, 1]}, marks=pytest.mark.slow
        ),
        {"without_bg_loss": False, "keep_ratio": False},
    ],
    ids=str,
)
def test_onnx_finds_the_same_boxes(changes):
    config = tiny(test_score_thr=0.1, **changes)
    net = lively(config)
    expected = list(detect(FasterRcnn_Infer(config, net), config, images()))
    assert len({label for _, labels in expected for label in labels}) > 2
    assert_agree(agreement(expected, onnx_detections(onnx_session(net, config), config, images())))


def test_onnx_of_an_image_without_detections():
    config = tiny(test_score_thr=0.9999)
    (boxes, labels), *_ = onnx_detections(onnx_session(lively(config), config), config, images(1))
    assert boxes.shape == (0, 5) and labels.shape == (0,)


@pytest.mark.slow
def test_mindir_finds_the_same_boxes(tmp_path):
    config = tiny(test_score_thr=0.1)
    net = lively(config)
    write_mindir(net, config, tmp_path / "a.mindir")
    expected = list(detect(FasterRcnn_Infer(config, net), config, images()))
    cell = load_mindir(tmp_path / "a.mindir")
    assert_agree(agreement(expected, detect(cell, config, images())))


@pytest.mark.slow
def test_mindir_of_the_image_alone(tmp_path):
    config = tiny(test_score_thr=0.1, restore_bbox=True, ori_h=40, ori_w=100)
    net = lively(config)
    write_mindir(net, config, tmp_path / "a.mindir")
    cell = load_mindir(tmp_path / "a.mindir")
    image = Tensor(np.random.default_rng(1).standard_normal((2, 3, 64, 64)).astype(np.float32))
    metas = Tensor(generator_img_meta(2, 40, 100, 64, 64))
    boxes, _, mask = (x.asnumpy() for x in cell(image))
    expected, _, kept = (x.asnumpy() for x in FasterRcnn_Infer(config, net)(image, metas))
    np.testing.assert_array_equal(mask, kept)
    assert mask.sum() > 10
    np.testing.assert_allclose(boxes[mask[..., 0]], expected[kept[..., 0]], atol=1e-3)


def test_images_of_which_nothing_is_said():
    assert (
        generator_img_meta(2, 40, 100, 64, 64).tolist()
        == [pytest.approx([40, 100, 0.64, 0.64])] * 2
    )
    for height, width in ((333, 500), (500, 333), (17, 900), (64, 64), (1000, 7)):
        for ratio in (True, False):
            config = tiny(img_width=96, keep_ratio=ratio)
            image = np.zeros((height, width, 3), np.uint8)
            expected = preprocess_fn(image, NO_BOX, False, config)[1]
            found = generator_img_meta(1, height, width, 64, 96, ratio)
            np.testing.assert_array_equal(found, expected[None])
    with pytest.raises(UserError, match="ori_h is 0 and ori_w 0"):
        FasterRcnn_Infer(tiny(restore_bbox=True))
    infer = FasterRcnn_Infer(tiny())
    np.testing.assert_array_equal(infer.usual_metas.asnumpy(), [[64, 64, 1, 1]])


def test_pooling_of_narrow_and_large_boxes():
    """RoiAlign of ONNX has several conventions; ours leaves boxes narrower than a cell narrow."""
    config = tiny()
    rng = np.random.default_rng(3)
    maps = [rng.standard_normal((1, 8, s, s)).astype(np.float32) for s in (16, 8, 4, 2)]
    low = rng.uniform(0, 40, (60, 2))
    sides = np.concatenate([rng.uniform(0, 3, (30, 2)), rng.uniform(3, 700, (30, 2))])
    boxes = np.concatenate([low, low + sides], 1).astype(np.float32)
    boxes[:5, :2] = 0
    graph = GraphBuilder({})
    regions, features = pooled(graph, "boxes", LEVELS, config)
    graph.named(regions, "regions"), graph.named(features, "features")

    def value(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    inputs = [value("boxes", "p", 4), *(value(n, *m.shape) for n, m in zip(LEVELS, maps))]
    model = graph.model("pooling", inputs, [value("regions", "p", 4), value("features", "p", 72)])
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found = session.run(None, {"boxes": boxes, **dict(zip(LEVELS, maps))})
    rois = np.insert(found[0], 0, 0, axis=1)
    strides = np.array(config.roi_align_featmap_strides, np.float32)
    expected = pool_forward(maps, rois, strides, (3, 3), 2, config.roi_align_finest_scale, 1)
    assert sorted(map(tuple, found[0])) == sorted(map(tuple, boxes))
    np.testing.assert_allclose(found[1], expected.reshape(60, 72), atol=1e-4)


def test_library_operators_are_of_what_is_made_inside():
    config = tiny()
    before = kernels_usable()
    with library_operators():
        assert not kernels_usable()
        net = Faster_Rcnn_Resnet(config)
    assert kernels_usable() == before
    assert not net.joined and not net.nms_test.compiled and not net.roi_align.compiled
    assert Faster_Rcnn_Resnet(config).nms_test.compiled == before


def test_agreement_tells_what_differs():
    boxes = np.array([[0, 0, 9, 9, 0.9], [20, 20, 40, 40, 0.5]], np.float32)
    labels = np.array([1, 2])
    same = agreement([(boxes, labels)], [(boxes[::-1], labels[::-1])])
    assert same and (same.boxes, same.alone, same.pixels) == (2, 0, 0)
    near = agreement([(boxes, labels)], [(boxes + np.float32(5e-4), labels)])
    assert near and near.pixels == pytest.approx(5e-4, rel=0.01)
    for other in (boxes + np.array([1, 0, 0, 0, 0]), boxes + np.array([0, 0, 0, 0, 0.01])):
        assert not agreement([(boxes, labels)], [(other, labels)])
    assert not agreement([(boxes, labels)], [(boxes, labels[::-1])])
    assert agreement([(boxes, labels)], [(boxes[:1], labels[:1])]).alone == 1
    assert agreement([(boxes[:0], labels[:0])], [(boxes, labels)]).alone == 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "detector.ckpt"
    ms.save_checkpoint(lively(tiny()), str(path))
    return path


def test_the_command(tmp_path, checkpoint):
    (tmp_path / "images").mkdir()
    for name, encoded in images(2):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(encoded)
    (tmp_path / "images" / "z.jpg").write_bytes(b"no image")
    words = [f"--config_path={TINY}", f"--ckpt_file={checkpoint}", "--file_name=net"]
    said = succeed(tmp_path, "tools/export.py", *words, "--file_format=onnx", "--images", "images")
    assert "boxes on 2 images: largest difference" in said and "net.onnx" in said
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    assert "airplane" in session.get_modelmeta().custom_metadata_map["classes"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "net.onnx"]


def test_a_file_that_finds_something_else_is_not_left(tmp_path, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(export, "agreement", lambda *both: Agreement(2, 10, 0, 0, alone=3))
    config = tiny(file_name=str(tmp_path / "a"), file_format="ONNX")
    config.checkpoint, config.frozen_from, config.images = checkpoint, None, []
    assert export.export(config) == 1
    assert not list(tmp_path.iterdir())
    assert "it was removed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give one checkpoint"),
        (("--checkpoint=a.ckpt", "--ckpt_file=b.ckpt"), "give one checkpoint"),
        (("--checkpoint=a.ckpt", "--file_format=AIR"), "on an Ascend alone"),
        (("--checkpoint=a.ckpt", "--file_format=TFLITE"), "expected MINDIR or ONNX"),
        (("--checkpoint=a.ckpt", "--file_name=gone/net"), "its folder does not exist"),
        (("--checkpoint=a.ckpt", "--images", "gone"), "--images gone: no such file or folder"),
        (("--checkpoint=a.ckpt",), "a.ckpt: no such file"),
        (("--checkpoint=a.ckpt", "--file_format=ONNX", "--restore_bbox=True"), "is of MINDIR"),
    ],
)
def test_what_cannot_be_exported(tmp_path, words, message):
    assert message in refused(tmp_path, "tools/export.py", f"--config_path={TINY}", *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_example_of_the_documentation(tmp_path):
    """With ONNX Runtime alone, in a Python of its own."""
    config = tiny(test_score_thr=0.1)
    net = lively(config)
    path = tmp_path / "detector.onnx"
    path.write_bytes(onnx_bytes(net, config))
    photo = jpeg(4, 64, 40)  # as wide as the input: nothing to resize
    (tmp_path / "photo.jpg").write_bytes(photo)
    text = (PROJECT_DIR / "docs" / "export.md").read_text(encoding="utf-8")
    example = text.split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    boxes, labels = next(detect(FasterRcnn_Infer(config, net), config, [("photo", photo)]))
    found = [line.split(" [")[0].rsplit(" ", 1) for line in done.stdout.splitlines() if "[" in line]
    names = config.coco_classes[1:]
    assert len(found) > 5
    assert found == [[names[n], f"{box[4]:.2f}"] for box, n in zip(boxes, labels)]
