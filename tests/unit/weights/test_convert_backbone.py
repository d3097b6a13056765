"""Converted ResNet-50 weights give the features that they gave where they come from."""

import itertools
import json
import re

import mindspore
import numpy as np
import pytest
from commands import refused, succeed
from mindspore import Tensor
from resnet_forward import ResNet50, random_weights
from safetensors.numpy import save_file
from torch_files import save_archive, state_dict

from src.convert_checkpoint import load_weights
from src.errors import UserError
from src.FasterRcnn import faster_rcnn, resnet
from src.FasterRcnn.resnet import ResNetFea
from src.model_utils.config import PROJECT_DIR, load_config
from src.weights.conversion import DETECTOR_EPS, convert, fold_epsilon
from src.weights.parameter_shapes import parameter_shapes
from src.weights.source import V1, V1_5

NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean"}
NORM["running_var"] = "moving_variance"
SHAPES = parameter_shapes(load_config())
PREFIX = "backbone."


@pytest.fixture(scope="module")
def weights():
    return random_weights()


def mindspore_names(weights, shortcut="down_sample_layer"):
    """As ModelZoo's checkpoints name them."""
    renamed = {}
    for name, value in weights.items():
        module, part = name.rsplit(".", 1)
        if value.ndim == 1:
            part = NORM[part]
        renamed[f"{module.replace('downsample', shortcut)}.{part}"] = value
    return renamed


def save_mindspore(path, values):
    rows = [{"name": name, "data": Tensor(value)} for name, value in values.items()]
    mindspore.save_checkpoint(rows, str(path))
    return path


def save_torch(path, weights, **more):
    extra = {"fc.weight": np.ones((10, 2048), np.float32), "fc.bias": np.ones(10, np.float32)}
    counters = {f"{n[:-6]}num_batches_tracked": np.array(9) for n in weights if ".bn1.weight" in n}
    return save_archive(path, state_dict({**weights, **extra, **counters, **more}))


def features(values, backbone, image):
    """C2 to C5 of the detector's backbone with converted values."""
    config = load_config()
    net = ResNetFea(
        faster_rcnn.block_of(backbone),
        config.resnet_block,
        config.resnet_in_channels,
        config.resnet_out_channels,
    )
    for parameter in net.get_parameters():
        parameter.set_data(Tensor(values[PREFIX + parameter.name]))
    return [found.asnumpy()[0] for found in net(Tensor(image[None]))]


def relative(found, expected):
    """The largest difference by the largest value."""
    return np.abs(found - expected).max() / np.abs(expected).max()


# In the gate each pair of values of two of the three is there once.
PAIRWISE = [(V1_5, 1e-4, False), (V1, 1e-5, False), (V1, 1e-4, True), (V1_5, 1e-5, True)]


@pytest.mark.parametrize(
    ("backbone", "eps", "small"),
    [
        pytest.param(*case, marks=[] if case in PAIRWISE else pytest.mark.slow)
        for case in itertools.product([V1_5, V1], [1e-4, 1e-5], [False, True])
    ],
)
def test_features_are_those_of_the_source(tmp_path, backbone, eps, small):
    """Against numpy, with the source's epsilon; ModelZoo's names for 1e-4, PyTorch's for 1e-5."""
    weights = random_weights(small)
    if eps == 1e-4:
        path = save_mindspore(tmp_path / "a.ckpt", mindspore_names(weights))
    else:
        path = save_torch(tmp_path / "a.pth", weights)
    converted = convert(path, SHAPES, backbone)
    assert (converted.source.bn_eps, converted.source.backbone) == (eps, backbone)
    image = np.random.default_rng(1).standard_normal((3, 64, 96)).astype(np.float32)
    expected = ResNet50(weights, eps, v1=backbone == V1)(image)
    found = features(converted.values, backbone, image)
    assert [f.shape for f in found] == [e.shape for e in expected]
    assert max(relative(f, e) for f, e in zip(found, expected)) < 1e-4
    # The test could tell: the other epsilon, and the stride elsewhere, give other features.
    other = ResNet50(weights, 1e-4 + 1e-5 - eps, v1=backbone == V1)(image)
    assert relative(found[3], other[3]) > (0.05 if small else 1e-4)
    elsewhere = ResNet50(weights, eps, v1=backbone != V1)(image)
    assert relative(found[3], elsewhere[3]) > 0.05


def test_a_deeper_resnet_is_converted_when_it_is_named(tmp_path):
    config = load_config(backbone="resnet_v1_101")
    path = save_torch(tmp_path / "a.pth", random_weights(blocks=config.resnet_block))
    with pytest.raises(UserError, match="of another depth, which --backbone names"):
        convert(path, SHAPES)
    found = convert(path, parameter_shapes(config), config.backbone)
    assert found.source.backbone == "resnet_v1_101"
    wanted = {name for name in parameter_shapes(config) if name.startswith(PREFIX)}
    assert set(found.values) == wanted and "backbone.layer3.22.conv3.weight" in wanted


def test_the_detectors_epsilon_is_the_one_converted_for():
    assert resnet.BN_EPS == DETECTOR_EPS


@pytest.mark.parametrize("trained", [0.0, 1e-6, 1e-5, 1e-3])
def test_folding_is_exact_and_leaves_no_variance_below_zero(trained):
    variance = np.array([0.0 if trained else 1e-7, 2e-6, 1e-5, 0.3, 40], np.float32)
    gamma = np.array([1.0, -2, 0.5, 1, 3], np.float32)
    values = {"bn.moving_variance": variance.copy(), "bn.gamma": gamma.copy()}
    fold_epsilon(values, trained, 1e-5)
    found = values["bn.gamma"] / np.sqrt(values["bn.moving_variance"].astype(np.float64) + 1e-5)
    np.testing.assert_allclose(found, gamma / np.sqrt(variance.astype(np.float64) + trained), 1e-5)
    assert (values["bn.moving_variance"] >= 0).all()


def test_what_is_no_variance_is_refused():
    for variance, eps in (([-0.1], 1e-5), ([0.0], 0.0)):
        values = {"bn.moving_variance": np.array(variance, np.float32), "bn.gamma": np.ones(1)}
        with pytest.raises(UserError, match="bn.moving_variance has a value that is no variance"):
            fold_epsilon(values, eps, 1e-5)


def test_every_source_of_the_same_weights_gives_the_same(tmp_path, weights):
    converted = [
        convert(save_torch(tmp_path / "a.pth", weights), SHAPES),
        convert(save_mindspore(tmp_path / "b.ckpt", mindspore_names(weights)), SHAPES, bn_eps=1e-5),
        convert(
            save_mindspore(tmp_path / "c.ckpt", mindspore_names(weights, "down_sample")), SHAPES
        ),
        convert(
            save_mindspore(
                tmp_path / "d.ckpt",
                {PREFIX + name: value for name, value in mindspore_names(weights).items()},
            ),
            SHAPES,
            bn_eps=1e-5,
        ),
    ]
    save_file(weights, tmp_path / "e.safetensors")
    converted.append(convert(tmp_path / "e.safetensors", SHAPES))
    assert len({c.kind.title for c in converted}) == 3
    assert set(converted[0].values) == {name for name in SHAPES if name.startswith(PREFIX)}
    for other in converted[1:]:
        assert set(other.values) == set(converted[0].values)
        for name, value in converted[0].values.items():
            np.testing.assert_array_equal(other.values[name], value)
    assert {"fc.weight", "fc.bias", "layer1.0.bn1.num_batches_tracked"} <= set(
        converted[0].left_out
    )


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"layer3.6.conv1.weight": np.ones((256, 1024, 1, 1), np.float32)},
            "has backbone.layer3.6",
        ),
        ({"layer1.0.se.fc1.weight": np.ones((4, 4), np.float32)}, "has backbone.layer1.0.se.fc1"),
        ({"layer2.1.bn2.bias": None}, "lacks backbone.layer2.1.bn2.beta"),
        ({"layer1.0.conv2.weight": np.ones((128, 128, 3, 3), np.float32)}, r"shape \[128, 128, 3"),
        ({"bn1.running_var": np.full(64, -1, np.float32)}, "no variance"),
        ({"conv1.weight": None}, "not recognised; expected a ResNet-50"),
    ],
)
def test_other_networks_are_refused_by_the_name_that_tells(tmp_path, weights, change, words):
    values = {n: v for n, v in {**weights, **change}.items() if v is not None}
    path = save_archive(tmp_path / "a.pth", state_dict(values))
    with pytest.raises(UserError, match=words) as caught:
        convert(path, SHAPES)
    assert str(path) in str(caught.value)


def test_load_weights_by_upstreams_signature(tmp_path, weights, golden_result):
    path = save_mindspore(tmp_path / "a.ckpt", mindspore_names(weights))
    found = load_weights(str(path), True)
    assert {row["name"] for row in found} == golden_result
    assert {row["data"].dtype for row in found} == {mindspore.float16}
    mindspore.save_checkpoint(load_weights(path, False), str(tmp_path / "backbone.ckpt"))
    saved = mindspore.load_checkpoint(str(tmp_path / "backbone.ckpt"))
    assert set(saved) == golden_result
    assert {param.dtype for param in saved.values()} == {mindspore.float32}


@pytest.fixture
def golden_result():
    """The names that upstream's converter gives, but for the classifier, which it keeps."""
    recorded = PROJECT_DIR / "tests" / "golden" / "pretrained_mapping.json"
    rows = json.loads(recorded.read_text())["convert_checkpoint_tool"]["result"]
    return {row["new"] for row in rows if row["new"].startswith(PREFIX)}


def test_as_a_command(tmp_path, weights):
    save_torch(tmp_path / "resnet50.pth", weights)
    said = succeed(tmp_path, "src/convert_checkpoint.py", "--ckpt_file=resnet50.pth")
    assert "PyTorch ResNet-50" in said and "backbone.ckpt: 265 tensors" in said
    assert "left out: fc.bias, fc.weight, 16 counters of batches" in said
    assert re.search("stays different: .*pooling", said)
    names = set(mindspore.load_checkpoint(str(tmp_path / "backbone.ckpt")))
    assert names == {n for n in SHAPES if n.startswith(PREFIX)} | {"suite.source"}
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []
    again = refused(tmp_path, "src/convert_checkpoint.py", "--ckpt_file=backbone.ckpt")
    assert "is converted already; give it as --pre_trained" in again
    for flags, words in (
        (["--ckpt_file=none.pth"], "none.pth: no such file"),
        (["--ckpt_file=resnet50.pth", "--out=a.pth"], "--out a.pth: expected a name that ends in"),
        (["--ckpt_file=resnet50.pth", "--bn_eps=-1"], "--bn_eps is -1.0, expected 0 to 1"),
        (["--ckpt_file=resnet50.pth", "--classes=a,b"], "has no box head"),
        (["--ckpt_fil=resnet50.pth"], "--ckpt_file"),
    ):
        assert words in refused(tmp_path, "src/convert_checkpoint.py", *flags)
