"""Names of ResNet-50 checkpoints against the recorded renaming."""

import json

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

from src.errors import UserError
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet
from src.model_utils.config import load_config
from src.weights.pretrained import load_pretrained, map_name

TINY = "configs/tiny/default_config.yaml"


@pytest.mark.parametrize("kind", ["modelzoo_resnet50", "already_prefixed"])
def test_map_name(golden, kind):
    recorded = json.loads((golden.folder / "pretrained_mapping.json").read_text())[kind]
    for row in recorded["kept"]:
        assert map_name(row["old"]) == row["new"]
    assert [map_name(name) for name in recorded["dropped"]] == [None] * len(recorded["dropped"])


@pytest.fixture(scope="module")
def net():
    return Faster_Rcnn_Resnet(load_config(TINY))


def save(path, values):
    rows = [{"name": name, "data": Tensor(value)} for name, value in values.items()]
    mindspore.save_checkpoint(rows, str(path))
    return path


def values_of(net):
    return {p.name: p.asnumpy().copy() for p in net.get_parameters()}


def test_classifier_checkpoint(net, tmp_path):
    """Backbone parameters under a classifier's names, in half precision, and leftovers."""
    before = values_of(net)
    inverse = {"conv_down_sample": "down_sample_layer.0", "bn_down_sample": "down_sample_layer.1"}
    given = {}
    for name, value in before.items():
        if name.startswith("backbone."):
            for new, old in inverse.items():
                name = name.replace(new, old)
            given[name[len("backbone.") :]] = (value + 1).astype(np.float16)
    leftovers = {"end_point.weight": np.ones(3, np.float32), "momentum": np.ones((), np.float32)}
    report = load_pretrained(net, save(tmp_path / "resnet.ckpt", {**given, **leftovers}))
    assert len(report.loaded) == len(given)
    assert set(report.missing) == {n for n in before if not n.startswith("backbone.")}
    assert f"loaded {len(given)} of the network's {len(before)}" in str(report)
    assert "8 of fpn_ncek" not in str(report) and "16 of fpn_ncek" in str(report)
    for name, value in values_of(net).items():
        expected = before[name] + name.startswith("backbone.")
        np.testing.assert_allclose(value, expected, atol=2e-3)
        assert value.dtype == np.float32


def test_whole_detector_checkpoint(net, tmp_path):
    given = {name: value * 0.5 for name, value in values_of(net).items()}
    report = load_pretrained(net, save(tmp_path / "detector.ckpt", given))
    assert report.missing == [] and len(report.loaded) == len(given)
    for name, value in values_of(net).items():
        np.testing.assert_array_equal(value, given[name])


def test_refused_files_change_nothing(net, tmp_path):
    before = values_of(net)
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"no checkpoint at all")
    alien = save(tmp_path / "alien.ckpt", {"embedding.table": np.ones((2, 2), np.float32)})
    other = save(
        tmp_path / "other.ckpt",
        {
            "conv1.weight": np.ones(before["backbone.conv1.weight"].shape, np.float32),
            "bn1.gamma": np.ones(3, np.float32),
        },
    )
    for path, message in (
        (tmp_path / "absent.ckpt", "no such file"),
        (tmp_path, "no such file"),
        (broken, "not a MindSpore checkpoint"),
        (alien, "no parameter of this detector"),
        (other, r"backbone.bn1.gamma has shape \[3\], this detector's has \[8\]"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            load_pretrained(net, path)
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    for name, value in values_of(net).items():
        np.testing.assert_array_equal(value, before[name])
