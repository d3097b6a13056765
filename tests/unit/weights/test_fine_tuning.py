"""A checkpoint into a detector of other classes, or of another backbone than it was made for."""

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

from src.commands.load_detector import load_detector
from src.errors import UserError
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet
from src.federated.aggregation import Aggregation
from src.launch.checkpoint_content import matching_names, source_of
from src.model_utils.config import load_config
from src.training import build_detector, save_models
from src.weights.conversion import convert
from src.weights.head_classes import CLASS_TENSORS
from src.weights.parameter_shapes import parameter_shapes
from src.weights.pretrained import backbone_of, load_pretrained
from src.weights.source import RECORD_NAME, Source, of_upstreams_worker, unpack

TINY = "configs/tiny/default_config.yaml"
ANIMALS = ["background", "cat", "dog", "horse"]
PETS = ["background", "dog", "parrot", "cat", "fish"]


def config_of(classes, **changes):
    return load_config(TINY, coco_classes=classes, num_classes=len(classes), **changes)


def values_of(net):
    return {p.name: p.asnumpy().copy() for p in net.get_parameters()}


@pytest.fixture(scope="module")
def trained():
    """Weights of a detector of animals, unlike any fresh ones."""
    values = values_of(Faster_Rcnn_Resnet(config_of(ANIMALS)))
    return {name: value + 1 for name, value in values.items()}


def save(path, values, source=None):
    rows = [{"name": name, "data": Tensor(value)} for name, value in values.items()]
    if source is not None:
        rows.append({"name": RECORD_NAME, "data": Tensor(source.packed())})
    mindspore.save_checkpoint(rows, str(path))
    return path


def source(classes=None, backbone="resnet_v1.5_50"):
    return Source("a test's detector", backbone, 1e-5, classes)


def test_the_record_comes_back(tmp_path):
    path = save(tmp_path / "a.ckpt", {"w": np.ones(2, np.float32)}, source(ANIMALS))
    stored = mindspore.load_checkpoint(str(path))[RECORD_NAME].asnumpy()
    assert unpack(stored, "a.ckpt") == source_of(path) == source(ANIMALS)
    for corrupt in (b"{", b"[]", b'{"kind": 1}', b'{"kind":"","backbone":1,"bn_eps":0}', b"\xff"):
        with pytest.raises(UserError, match="suite.source is corrupt; convert it again"):
            unpack(corrupt, "a.ckpt")


def test_the_head_of_other_classes_is_drawn_anew(tmp_path, trained, caplog):
    path = save(tmp_path / "a.ckpt", trained)
    config = config_of(PETS, pre_trained=str(path))
    fresh = values_of(Faster_Rcnn_Resnet(config))
    with caplog.at_level("INFO"):
        net, said = build_detector(config)
    assert "initialized again" not in caplog.text  # the worker prints `said`, and once is enough
    assert "111 of the network's 115 parameters" in said
    assert f"initialized again for other classes: {', '.join(CLASS_TENSORS)}" in said
    assert "but for" not in said and "not found" not in said
    for name, value in values_of(net).items():
        expected = fresh[name] if name in CLASS_TENSORS else trained[name]
        np.testing.assert_array_equal(value, expected)
    assert matching_names(path, config) == (111, 115)


def workers_checkpoint(folder, **changes):
    """A detector of animals as this suite's workers save it, with its fingerprint."""
    config = config_of(ANIMALS, **changes)
    net, path = Faster_Rcnn_Resnet(config), folder / "w.ckpt"
    save_models(net, config, folder / "s.ckpt", path, Aggregation())
    return net, path


def test_a_worker_checkpoint_is_fine_tuned_for_other_sizes_and_classes(tmp_path):
    net, path = workers_checkpoint(tmp_path, seed=3)
    other = config_of(PETS, img_width=96, keep_ratio=False, pre_trained=str(path))
    tuned, said = build_detector(other)
    assert "111 of the network's 115 parameters" in said and "not found" not in said
    found, given = values_of(tuned), values_of(net)
    for name in set(given) - set(CLASS_TENSORS):
        np.testing.assert_array_equal(found[name], given[name])
    assert matching_names(path, other) == (111, 115)
    same = config_of(ANIMALS, img_width=96, pre_trained=str(path))
    assert "115 of the network's 115 parameters" in build_detector(same)[1]
    assert matching_names(path, same) == (115, 115)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"backbone": "resnet_v1_50"}, r"resnet_v1_50 \(set backbone: resnet_v1.5_50\)$"),
        ({"anchor_scales": [8]}, r"other anchor_scales than \[8\] \(set them as they were\)$"),
        ({"anchor_ratios": [2.0, 1.0, 0.5]}, r"other anchor_ratios than \[2.0, 1.0, 0.5\] \(set"),
        ({"rcnn_target_stds": [1.0] * 4}, "other rcnn_target_stds than"),
        (
            {"roi_layer": {"type": "RoIAlign", "out_size": 3, "sample_num": 1}},
            "other roi_layer than {'type': 'RoIAlign', 'out_size': 3, 'sample_num': 1}",
        ),
        ({"coco_classes": ["background", "horse", "cat", "dog"]}, "4 classes of other names, or"),
        ({"coco_classes": PETS, "backbone": "resnet_v1_50"}, "another backbone than resnet_v1_50"),
    ],
)
def test_a_worker_checkpoint_of_another_kind_is_refused_by_name(tmp_path, changes, words):
    _, path = workers_checkpoint(tmp_path)
    config = config_of(changes.pop("coco_classes", ANIMALS), pre_trained=str(path), **changes)
    for refusing in (lambda: build_detector(config), lambda: matching_names(path, config)):
        with pytest.raises(UserError, match=words) as error:
            refusing()
        assert f"{path}: was trained with" in str(error.value)
    net = Faster_Rcnn_Resnet(config)
    with pytest.raises(UserError, match="was trained with other values of: "):
        load_detector(net, config, path)


def test_other_classes_of_the_same_number_are_trained_from_a_converted_checkpoint(tmp_path):
    """What the refusal says: the converter is told the names."""
    net, path = workers_checkpoint(tmp_path)
    config = config_of(["background", "horse", "cat", "fish"], pre_trained=str(path))
    with pytest.raises(UserError, match=f"--classes=<its names> to .*--ckpt_file={path} "):
        build_detector(config)
    found = convert(path, parameter_shapes(config), "resnet_v1.5_50", None, ANIMALS)
    config.pre_trained = str(save(tmp_path / "converted.ckpt", found.values, found.source))
    tuned, said = build_detector(config)
    assert said.endswith("but for the columns of background, horse, cat")
    theirs, ours = (values_of(n)["rcnn.cls_scores.weight"] for n in (net, tuned))
    np.testing.assert_array_equal(ours[..., :3], theirs[..., [0, 3, 1]])


@pytest.mark.parametrize("slots", ["accum.", "moments."])
def test_a_checkpoint_of_upstreams_workers_is_of_resnet_v1_50(tmp_path, trained, slots):
    """Upstream saves the training step's cell, and always trains the stride on the 1x1."""
    extra = {slots + name: value for name, value in trained.items()}
    scalars = {name: np.ones(1, np.float32) for name in ("momentum", "global_step")}
    path = save(tmp_path / "0-epoch.ckpt", {**trained, **extra, **scalars})
    config = config_of(ANIMALS, pre_trained=str(path))
    net = Faster_Rcnn_Resnet(config)
    for refusing in (
        lambda: build_detector(config),
        lambda: matching_names(path, config),
        lambda: load_detector(net, config, path),
    ):
        with pytest.raises(UserError, match="upstream's workers.*: set backbone: resnet_v1_50;"):
            refusing()
    right = config_of(ANIMALS, pre_trained=str(path), backbone="resnet_v1_50")
    assert "115 of the network's 115 parameters" in build_detector(right)[1]
    assert matching_names(path, right) == (115, 115)
    assert "115 of 115 tensors" in load_detector(Faster_Rcnn_Resnet(right), right, path)
    # What the refusal says of a detector that others trained with the stride on the 3x3.
    found = convert(path, parameter_shapes(config), "resnet_v1.5_50", None, ANIMALS)
    config.pre_trained = str(save(tmp_path / "converted.ckpt", found.values, found.source))
    assert "115 of the network's 115 parameters" in build_detector(config)[1]


def test_a_classifier_with_its_optimisers_state_is_no_worker_of_upstreams(tmp_path, trained):
    values = {n[len("backbone.") :]: v for n, v in trained.items() if n.startswith("backbone.")}
    extra = {f"moments.{name}": value for name, value in values.items()}
    path = save(tmp_path / "resnet50.ckpt", {**values, **extra})
    config = config_of(ANIMALS, pre_trained=str(path))
    build_detector(config)
    matching_names(path, config)


def test_this_suites_own_checkpoints_are_never_taken_for_upstreams(tmp_path, trained):
    """Neither those with a fingerprint nor the first version's, which have none."""
    _, path = workers_checkpoint(tmp_path)
    assert not of_upstreams_worker(mindspore.load_checkpoint(str(path)))
    assert not of_upstreams_worker(trained)
    assert not of_upstreams_worker([*trained, "accum.rcnn.cls_scores.bias", "suite.fingerprint"])


@pytest.mark.parametrize("without_bg_loss", [True, False])
def test_columns_of_shared_classes_are_carried_over(tmp_path, trained, without_bg_loss):
    """Where the checkpoint says what its classes are."""
    path = save(tmp_path / "a.ckpt", trained, source(ANIMALS))
    config = config_of(PETS, pre_trained=str(path), without_bg_loss=without_bg_loss)
    fresh = values_of(Faster_Rcnn_Resnet(config))
    net, said = build_detector(config)
    assert said.endswith("but for the columns of background, dog, cat")
    found = values_of(net)
    for part in ("weight", "bias"):
        scores, theirs = found[f"rcnn.cls_scores.{part}"], trained[f"rcnn.cls_scores.{part}"]
        np.testing.assert_array_equal(scores[..., [0, 1, 3]], theirs[..., [0, 2, 1]])
        untouched = fresh[f"rcnn.cls_scores.{part}"][..., [2, 4]]
        np.testing.assert_array_equal(scores[..., [2, 4]], untouched)

        def boxes(values, part=part):
            array = values[f"rcnn.reg_scores.{part}"]
            return array.reshape(*array.shape[:-1], -1, 4)

        ours, theirs = boxes(found), boxes(trained)
        first = ours.shape[-2] - 4
        assert first == (0 if without_bg_loss else 1)
        np.testing.assert_array_equal(ours[..., first + 0, :], theirs[..., 1, :])
        np.testing.assert_array_equal(ours[..., first + 2, :], theirs[..., 0, :])
        for number in (1, 3):
            new = boxes(fresh)[..., first + number, :]
            np.testing.assert_array_equal(ours[..., first + number, :], new)


def test_the_same_classes_in_another_order_are_told_by_name(tmp_path, trained):
    path = save(tmp_path / "a.ckpt", trained, source(ANIMALS))
    order = ["background", "horse", "cat", "dog"]
    net, _ = build_detector(config_of(order, pre_trained=str(path)))
    found = values_of(net)["rcnn.cls_scores.bias"]
    np.testing.assert_array_equal(found, trained["rcnn.cls_scores.bias"][[0, 3, 1, 2]])


@pytest.mark.parametrize("named", [True, False])
def test_the_same_classes_load_whole(tmp_path, trained, named):
    path = save(tmp_path / "a.ckpt", trained, source(ANIMALS) if named else None)
    net, said = build_detector(config_of(ANIMALS, pre_trained=str(path)))
    assert said == f"{path}: loaded 115 of the network's 115 parameters"
    for name, value in values_of(net).items():
        np.testing.assert_array_equal(value, trained[name])


@pytest.mark.parametrize(
    "name, shape",
    [
        ("rcnn.shared_fc_0.weight", (72, 32)),
        ("rcnn.cls_scores.weight", (32, 4)),
        ("fpn_ncek.lateral_convs_list.0.bias", (9,)),
    ],
)
def test_every_other_shape_is_refused_as_before(tmp_path, trained, name, shape):
    path = save(tmp_path / "a.ckpt", {**trained, name: np.ones(shape, np.float32)})
    config = config_of(PETS, pre_trained=str(path))
    for refusing in (lambda: build_detector(config), lambda: matching_names(path, config)):
        with pytest.raises(UserError, match=f"{name} has shape"):
            refusing()


def test_measuring_a_head_of_other_classes_is_refused(tmp_path, trained):
    """A fresh head has nothing to measure: only who trains may have one."""
    config = config_of(PETS)
    net = Faster_Rcnn_Resnet(config)
    plain = save(tmp_path / "a.ckpt", trained)
    with pytest.raises(UserError, match="rcnn.cls_scores.* has shape"):
        load_pretrained(net, plain)
    order = ["background", "horse", "cat", "dog"]
    config = config_of(order)
    named = save(tmp_path / "b.ckpt", trained, source(ANIMALS))
    with pytest.raises(UserError, match="'cat' where coco_classes has 'horse'"):
        load_detector(Faster_Rcnn_Resnet(config), config, named)
    config = config_of(ANIMALS)
    said = load_detector(Faster_Rcnn_Resnet(config), config, named)
    assert said == f"{named}: 115 of 115 tensors"


@pytest.mark.parametrize(
    "backbone, other",
    [("resnet_v1.5_50", "resnet_v1_50"), ("resnet_v1_50", "resnet_v1.5_50")],
)
def test_a_backbone_that_strides_elsewhere_is_refused(tmp_path, trained, backbone, other):
    path = save(tmp_path / "a.ckpt", trained, source(ANIMALS, other))
    config = config_of(ANIMALS, pre_trained=str(path), backbone=backbone)
    assert backbone_of(Faster_Rcnn_Resnet(config)) == backbone
    for refusing in (lambda: build_detector(config), lambda: matching_names(path, config)):
        with pytest.raises(
            UserError, match=f"converted as {other}.*set backbone: {other}"
        ) as error:
            refusing()
        assert str(path) in str(error.value)
    build_detector(config_of(ANIMALS, pre_trained=str(path), backbone=other))


def test_a_deeper_backbone_takes_weights_that_stride_as_it_does(tmp_path, trained):
    path = save(tmp_path / "a.ckpt", trained, source(ANIMALS, "resnet_v1.5_50"))
    deeper = config_of(ANIMALS, pre_trained=str(path), backbone="resnet_v1_101")
    assert matching_names(path, deeper) == (115, 115)
    assert "loaded 115 of" in build_detector(deeper)[1]


def test_a_file_of_pytorch_names_the_command(tmp_path):
    path = tmp_path / "resnet50.pth"
    path.write_bytes(b"")
    config = config_of(ANIMALS, pre_trained=str(path))
    for refusing in (lambda: build_detector(config), lambda: matching_names(path, config)):
        with pytest.raises(UserError, match="src.convert_checkpoint --ckpt_file=.*resnet50.pth"):
            refusing()


def test_an_unconverted_modelzoo_checkpoint_gets_a_word(tmp_path, trained):
    values = {
        name[len("backbone.") :].replace("bn_down_sample", "down_sample_layer.1"): value
        for name, value in trained.items()
        if name.startswith("backbone.")
    }
    path = save(tmp_path / "a.ckpt", values)
    _, said = build_detector(config_of(ANIMALS, pre_trained=str(path)))
    assert "epsilon 1e-4" in said and f"--ckpt_file={path}" in said
