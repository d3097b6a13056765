"""mindspore_hub_conf.py as MindSpore Hub calls it."""

import mindspore as ms
import pytest
from commands import succeed
from evaluation_sets import TINY, assert_same

from mindspore_hub_conf import create_network
from src.errors import UserError
from src.federated.aggregation import Aggregation
from src.federated.fingerprint import FEATURE_NAME
from src.model_utils.config import load_config
from src.training import save_models

BACKBONES = {"resnet_v1.5_50": (1, 2), "resnet_v1_50": (2, 1), "resnet_v1_101": (1, 2)}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_each_backbone_takes_a_checkpoint(tmp_path, backbone):
    net = create_network("faster_rcnn", TINY, backbone=backbone, seed=3)
    block = net.backbone.layer2[0]
    assert (block.conv1.stride[0], block.conv2.stride[0]) == BACKBONES[backbone]
    path = tmp_path / "net.ckpt"
    ms.save_checkpoint(net, str(path))
    fetched = create_network("faster_rcnn", TINY, backbone=backbone)
    assert not any(ms.load_param_into_net(fetched, ms.load_checkpoint(str(path)), strict_load=True))
    at_once = create_network("faster_rcnn", TINY, backbone=backbone, ckpt_file=str(path))
    for other in (fetched, at_once):
        assert_same(net, other)


@pytest.mark.parametrize("words", [(), ("--help",)])
def test_as_a_script_it_says_what_it_is_for(tmp_path, words):
    said = succeed(tmp_path, "mindspore_hub_conf.py", *words)
    assert 'create_network("faster_rcnn", backbone="resnet_v1_50", num_classes=81)' in said


def test_a_checkpoint_of_a_job(tmp_path):
    config = load_config(TINY, seed=3)
    net = create_network("faster_rcnn", config)
    path = tmp_path / "w.ckpt"
    save_models(net, config, tmp_path / "s.ckpt", path, Aggregation())
    fetched = create_network("faster_rcnn", TINY)
    left = ms.load_param_into_net(fetched, ms.load_checkpoint(str(path)), strict_load=True)
    assert left == ([], [FEATURE_NAME])
    assert_same(net, fetched)
    assert_same(net, create_network("faster_rcnn", TINY, ckpt_file=str(path)))
    with pytest.raises(UserError, match="other values of: img_width;"):
        create_network("faster_rcnn", TINY, ckpt_file=str(path), img_width=96)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": "resnet_152"}, "expected one of resnet_v1.5_50, resnet_v1_50"),
        ({"backbon": "resnet_v1_50"}, "did you mean backbone"),
        ({"ckpt_file": "gone.ckpt"}, "gone.ckpt: no such file"),
    ],
)
def test_what_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        create_network("faster_rcnn", TINY, **values)
