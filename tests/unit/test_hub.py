"""mindspore_hub_conf.py as MindSpore Hub calls it."""

import mindspore as ms
import pytest
from evaluation_sets import TINY, assert_same

from mindspore_hub_conf import create_network
from src.errors import UserError

BACKBONES = {"resnet_v1.5_50": (1, 2), "resnet_v1_50": (2, 1)}


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
