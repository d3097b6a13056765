"""Whole detectors of other origin: each tensor, the classes, and the box head's output."""

from pathlib import Path

import mindspore
import numpy as np
import pytest
from commands import refused, succeed
from mindspore import Tensor, ops
from resnet_forward import random_weights
from torch_files import save_archive, state_dict

from src.errors import UserError
from src.FasterRcnn.anchor_generator import AnchorGenerator
from src.FasterRcnn.rcnn import Rcnn
from src.federated.fingerprint import FEATURE_NAME
from src.model_utils.config import load_config
from src.weights import head_classes
from src.weights.conversion import convert
from src.weights.parameter_shapes import parameter_shapes
from src.weights.source import V1
from src.weights.torchvision_detector import detector_name

CONFIG = load_config()
SHAPES = parameter_shapes(CONFIG)
RPN = "rpn_with_loss.rpn_convs_list.0."


def drawn(rng, *shape):
    return (rng.standard_normal(shape, dtype=np.float32) / np.sqrt(np.prod(shape[1:]))).astype(
        np.float32
    )


def torchvision_weights(classes=91, new_names=False):
    """A state dict of `fasterrcnn_resnet50_fpn`, by the names before or since torchvision 0.13."""
    rng = np.random.default_rng(3)
    values = {f"backbone.body.{name}": value for name, value in random_weights().items()}
    block, conv = (".0", ".0.0") if new_names else ("", "")
    shapes = {
        **{f"backbone.fpn.inner_blocks.{i}{block}": (256, 256 * 2**i, 1, 1) for i in range(4)},
        **{f"backbone.fpn.layer_blocks.{i}{block}": (256, 256, 3, 3) for i in range(4)},
        f"rpn.head.conv{conv}": (256, 256, 3, 3),
        "rpn.head.cls_logits": (3, 256, 1, 1),
        "rpn.head.bbox_pred": (12, 256, 1, 1),
        "roi_heads.box_head.fc6": (1024, 256 * 7 * 7),
        "roi_heads.box_head.fc7": (1024, 1024),
        "roi_heads.box_predictor.cls_score": (classes, 1024),
        "roi_heads.box_predictor.bbox_pred": (4 * classes, 1024),
    }
    for name, shape in shapes.items():
        values[f"{name}.weight"] = drawn(rng, *shape)
        values[f"{name}.bias"] = drawn(rng, shape[0])
    return values


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("detectors")


@pytest.fixture(scope="module")
def source():
    return torchvision_weights()


@pytest.fixture(scope="module")
def converted(folder, source):
    return convert(save_archive(folder / "frcnn.pth", state_dict(source)), SHAPES)


def test_every_parameter_of_the_detector_is_there(converted):
    assert {name: value.shape for name, value in converted.values.items()} == SHAPES
    assert all(value.dtype == np.float32 for value in converted.values.values())
    assert converted.source.bn_eps == 0 and converted.source.backbone == "resnet_v1.5_50"
    assert converted.left_out == converted.head_left_out == []


def test_pyramid_and_proposals_are_taken_as_they_are(source, converted):
    for ours, theirs in {
        "fpn_ncek.lateral_convs_list.0.weight": "backbone.fpn.inner_blocks.0.weight",
        "fpn_ncek.lateral_convs_list.3.bias": "backbone.fpn.inner_blocks.3.bias",
        "fpn_ncek.fpn_convs_list.2.weight": "backbone.fpn.layer_blocks.2.weight",
        f"{RPN}rpn_conv.weight": "rpn.head.conv.weight",
        f"{RPN}rpn_cls.bias": "rpn.head.cls_logits.bias",
        f"{RPN}rpn_reg.weight": "rpn.head.bbox_pred.weight",
        "backbone.layer4.0.conv_down_sample.weight": "backbone.body.layer4.0.downsample.0.weight",
        "backbone.layer4.0.bn_down_sample.beta": "backbone.body.layer4.0.downsample.1.bias",
    }.items():
        np.testing.assert_array_equal(converted.values[ours], source[theirs])


def test_epsilon_zero_is_folded(source, converted):
    theirs = source["backbone.body.layer2.0.bn2.running_var"].astype(np.float64)
    ours = converted.values["backbone.layer2.0.bn2.moving_variance"].astype(np.float64)
    np.testing.assert_allclose(ours + 1e-5, theirs, rtol=1e-6)


def test_statistics_with_counters_have_the_epsilon_of_batch_norm(folder, source):
    """nn.BatchNorm2d counts batches, torchvision's frozen one does not."""
    counters = {
        name.replace("running_var", "num_batches_tracked"): np.array(9)
        for name in source
        if name.endswith("running_var")
    }
    path = save_archive(folder / "counted.pth", state_dict({**source, **counters}))
    found = convert(path, SHAPES)
    assert found.source.bn_eps == 1e-5 and not found.assumed
    np.testing.assert_array_equal(
        found.values["backbone.layer2.0.bn2.moving_variance"],
        source["backbone.body.layer2.0.bn2.running_var"],
    )
    assert convert(path, SHAPES, bn_eps=0.0).source.bn_eps == 0


def test_what_was_given_is_not_called_assumed(folder, source, converted):
    path = save_archive(folder / "frozen.pth", state_dict(source))
    assert "epsilon is 0" in converted.assumed
    assert not convert(path, SHAPES, bn_eps=1e-5).assumed


@pytest.mark.parametrize("stride", CONFIG.anchor_strides)
def test_proposals_are_torchvisions(source, converted, stride):
    """From anchors around whole strides, as boxes between edges, which end at the pixel before."""
    rng = np.random.default_rng(6)
    heights = np.sqrt(CONFIG.anchor_ratios) * 8 * stride
    sides = np.stack([8 * stride / np.sqrt(CONFIG.anchor_ratios), heights], 1)
    sides = 2 * np.round(sides / 2)
    position = np.array([60, 50])
    drawn_offsets = 0.3 * rng.standard_normal((3, 4))
    bias = source["rpn.head.bbox_pred.bias"].reshape(3, 4)
    offsets = drawn_offsets + bias
    centre = position * stride + offsets[:, :2] * sides
    half = np.exp(offsets[:, 2:]) * sides / 2
    expected = np.concatenate([centre - half, centre + half], 1)

    ours = AnchorGenerator(stride, CONFIG.anchor_scales, CONFIG.anchor_ratios).base_anchors
    ours = (ours + np.tile(position * stride, 2)).astype(np.float32)
    decode = ops.BoundingBoxDecode(max_shape=(10**5, 10**5), means=(0.0,) * 4, stds=(1.0,) * 4)
    bias = converted.values[f"{RPN}rpn_reg.bias"].reshape(3, 4)
    found = decode(Tensor(ours), Tensor((drawn_offsets + bias).astype(np.float32))).asnumpy()
    np.testing.assert_allclose(found + [0, 0, 1, 1], expected, atol=0.1)


def test_the_box_head_gives_what_torchvisions_gives(source, converted):
    """Logits and offsets of pooled features, by a plain numpy forward of the source."""
    head = Rcnn(CONFIG, 256 * 7 * 7, 1, 81).set_train(False)
    for parameter in head.get_parameters():
        parameter.set_data(Tensor(converted.values[f"rcnn.{parameter.name}"]))
    pooled = np.random.default_rng(5).standard_normal((6, 256, 7, 7), dtype=np.float32)

    def dense(name, x):
        part = f"roi_heads.{name}"
        return x @ source[f"{part}.weight"].T.astype(np.float64) + source[f"{part}.bias"]

    hidden = np.maximum(dense("box_head.fc6", pooled.reshape(6, -1)), 0)
    hidden = np.maximum(dense("box_head.fc7", hidden), 0)
    logits = dense("box_predictor.cls_score", hidden)
    offsets = dense("box_predictor.bbox_pred", hidden).reshape(6, 91, 4)
    ids = [0, *head_classes.IDS]
    found_logits, _, found_offsets, _ = head(Tensor(pooled), None, None, None)
    np.testing.assert_allclose(found_logits.asnumpy(), logits[:, ids], atol=1e-4)
    found = found_offsets.asnumpy().reshape(6, 80, 4)
    np.testing.assert_allclose(found, offsets[:, ids[1:]], atol=1e-4)
    assert np.abs(found - offsets[:, ids[:-1]]).max() > 0.01


def test_cocos_classes_are_found_by_their_ids(source, converted):
    """Ids as in COCO's own annotation files."""
    classes = converted.source.classes
    assert classes == CONFIG.coco_classes and len(classes) == 81
    bias = source["roi_heads.box_predictor.cls_score.bias"]
    for name, number in {
        "background": 0, "person": 1, "fire hydrant": 11, "stop sign": 13, "umbrella": 28,
        "handbag": 31, "wine glass": 46, "bed": 65, "dining table": 67, "toilet": 70, "tv": 72,
        "refrigerator": 82, "book": 84, "toothbrush": 90,
    }.items():  # fmt: skip
        found = converted.values["rcnn.cls_scores.bias"][classes.index(name)]
        assert found == bias[number], name


def test_names_since_torchvision_0_13(folder, converted):
    path = save_archive(folder / "new.pth", state_dict(torchvision_weights(new_names=True)))
    found = convert(path, SHAPES).values
    for name, value in converted.values.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(
    "name",
    ["rpn.head.conv.1.0.weight", "roi_heads.box_head.0.0.weight", "roi_heads.mask_head.fc6.weight"],
)
def test_parts_of_other_detectors_keep_their_names(name):
    assert detector_name(name) == name


def test_a_head_of_other_classes(folder):
    values = torchvision_weights(classes=4)
    path = save_archive(folder / "four.pth", state_dict(values))
    unnamed = convert(path, SHAPES)
    assert unnamed.source.classes is None and len(unnamed.head_left_out) == 4
    assert not any(name in unnamed.values for name in unnamed.head_left_out)
    names = ["background", "cat", "dog", "person"]
    named = convert(path, SHAPES, classes=names)
    assert named.source.classes == names
    bias = values["roi_heads.box_predictor.bbox_pred.bias"]
    np.testing.assert_array_equal(named.values["rcnn.reg_scores.bias"], bias[4:])
    with pytest.raises(UserError, match="lists 2 names with the background, the box head has 4"):
        convert(path, SHAPES, classes=["background", "cat"])


def test_another_detector_is_refused(folder):
    values = torchvision_weights(classes=2)
    values["roi_heads.mask_head.mask_fcn1.weight"] = np.ones((2, 2), np.float32)
    path = save_archive(folder / "mask.pth", state_dict(values))
    with pytest.raises(UserError, match="has roi_heads.mask_head.mask_fcn1.weight: another"):
        convert(path, SHAPES)


def test_torchs_networks_with_another_use_of_the_backbone(folder):
    """torchvision's for segmentation: dilated, with the same shapes."""
    values = {f"backbone.{name}": value for name, value in random_weights().items()}
    values["classifier.0.weight"] = np.ones((512, 2048, 3, 3), np.float32)
    path = save_archive(folder / "fcn.pth", state_dict(values))
    with pytest.raises(UserError, match="not recognised; expected a ResNet-50"):
        convert(path, SHAPES)


def upstream_weights(neck, background=False):
    """A detector of upstream's with what its training leaves in a checkpoint."""
    rng = np.random.default_rng(4)
    values = {}
    for name, shape in SHAPES.items():
        if background and "reg_scores" in name:
            shape = (*shape[:-1], 4 * 81)
        value = np.abs(drawn(rng, *shape)) + 0.01
        values[name.replace("fpn_ncek", neck)] = value.astype(np.float32)
    for name in ("moments.backbone.conv1.weight", "accum.rcnn.cls_scores.bias", "learning_rate"):
        values[name] = np.ones(3, np.float32)
    return values


def save_mindspore(path: Path, values):
    rows = [{"name": name, "data": Tensor(value)} for name, value in values.items()]
    mindspore.save_checkpoint(rows, str(path))
    return path


@pytest.mark.parametrize("neck, background", [("fpn_ncek", False), ("fpn_neck", True)])
def test_upstreams_detector(folder, neck, background):
    values = upstream_weights(neck, background)
    path = save_mindspore(folder / f"{neck}.ckpt", values)
    with pytest.raises(UserError, match="does not say where its backbone strides; give --backbone"):
        convert(path, SHAPES)
    found = convert(path, SHAPES, V1)
    assert found.source.classes == CONFIG.coco_classes and found.source.backbone == V1
    assert len(found.left_out) == 3
    for name, value in found.values.items():
        expected = values[name.replace("fpn_ncek", neck)]
        expected = expected[..., -SHAPES[name][-1] :] if "reg_scores" in name else expected
        np.testing.assert_array_equal(value, expected)


def test_a_checkpoint_of_this_suite_is_converted_without_its_fingerprint(folder):
    """With --classes: its columns are then known by name to who fine-tunes."""
    values = {**upstream_weights("fpn_ncek"), FEATURE_NAME: np.ones(10, np.float32)}
    found = convert(save_mindspore(folder / "own.ckpt", values), SHAPES, V1)
    assert FEATURE_NAME in found.left_out and set(found.values) == set(SHAPES)


@pytest.mark.slow
def test_as_a_command(folder):
    save_archive(folder / "frcnn.pth", state_dict(torchvision_weights()))
    said = succeed(folder, "src/convert_checkpoint.py", "--ckpt_file=frcnn.pth")
    assert "torchvision fasterrcnn_resnet50_fpn" in said
    assert "detector.ckpt: 295 tensors" in said and "81 classes: background, person" in said
    assert "assumed: BatchNorm's epsilon is 0" in said
    assert said.count("stays different") == 4 and "--pre_trained=detector.ckpt" in said
    save_mindspore(folder / "up.ckpt", upstream_weights("fpn_neck"))
    assert "--backbone=resnet_v1_50" in refused(
        folder, "src/convert_checkpoint.py", "--ckpt_file=up.ckpt"
    )
