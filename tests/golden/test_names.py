"""Names, shapes and trainability of the detector's parameters, which checkpoints depend on."""

import json

import pytest

from src.FasterRcnn import faster_rcnn_resnet, faster_rcnn_resnet50v1
from src.model_utils.config import load_config


@pytest.mark.parametrize("module", [faster_rcnn_resnet, faster_rcnn_resnet50v1])
def test_parameters_in_network_order(golden, module):
    recorded = json.loads((golden.folder / "param_names.json").read_text())
    net = module.Faster_Rcnn_Resnet(load_config())
    parameters = [
        {"name": p.name, "shape": list(p.shape), "trainable": p.requires_grad}
        for p in net.get_parameters()
    ]
    assert parameters == recorded
    assert len(net.trainable_params()) == 156


@pytest.mark.parametrize(
    "module, backbone, strides",
    [
        (faster_rcnn_resnet, "resnet_v1.5_50", ((1, 1), (2, 2))),
        (faster_rcnn_resnet, "resnet_v1_50", ((2, 2), (1, 1))),
        (faster_rcnn_resnet, "resnet_v1_101", ((1, 1), (2, 2))),
        (faster_rcnn_resnet, "resnet_v1_152", ((1, 1), (2, 2))),
        (faster_rcnn_resnet50v1, "resnet_v1.5_50", ((2, 2), (1, 1))),
    ],
)
def test_where_the_backbone_strides(module, backbone, strides):
    config = load_config("configs/tiny/default_config.yaml", backbone=backbone)
    block = module.Faster_Rcnn_Resnet(config).backbone.layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == strides
