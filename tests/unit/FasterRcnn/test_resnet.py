"""Where the two backbones take their stride, told by what they compute."""

import numpy as np
import pytest
from mindspore import Tensor

from src.FasterRcnn.initialization import init_parameters
from src.FasterRcnn.resnet import ResidualBlockUsing, ResNetFea
from src.FasterRcnn.resnet50v1 import ResidualBlockUsing_V1

SKIPPED = np.s_[:, :, ::2, ::2]


def block(kind, stride):
    cell = kind(8, 16, stride, down_sample=True)
    init_parameters(cell, 1)
    return cell


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).standard_normal((2, 8, 12, 10)).astype(np.float32)


def test_v1_5_looks_at_every_pixel_and_keeps_every_second(image):
    expected = block(ResidualBlockUsing, 1)(Tensor(image)).asnumpy()[SKIPPED]
    found = block(ResidualBlockUsing, 2)(Tensor(image)).asnumpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_v1_looks_at_every_second_pixel(image):
    skipped = np.ascontiguousarray(image[SKIPPED])
    expected = block(ResidualBlockUsing_V1, 1)(Tensor(skipped)).asnumpy()
    found = block(ResidualBlockUsing_V1, 2)(Tensor(image)).asnumpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("weights_update, frozen", [(False, ["conv1", "layer1"]), (True, [])])
def test_stem_and_first_stage_are_frozen_unless_asked_for(weights_update, frozen):
    backbone = ResNetFea(ResidualBlockUsing, [1] * 4, [8] * 4, [8] * 4, weights_update)
    weights = [p for p in backbone.get_parameters() if p.name.endswith("conv1.weight")]
    assert len(weights) == 5
    still = [p.name.split(".")[0] for p in weights if not p.requires_grad]
    assert still == frozen
