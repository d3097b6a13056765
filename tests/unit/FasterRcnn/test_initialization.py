"""Initial weights: from the seed and the name alone, and of sound size."""

import numpy as np
import pytest

from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet
from src.FasterRcnn.initialization import init_parameters
from src.model_utils.config import load_config


@pytest.fixture(scope="module")
def net():
    return Faster_Rcnn_Resnet(load_config("configs/tiny/default_config.yaml", seed=5))


def values(net):
    return {p.name: p.asnumpy().copy() for p in net.get_parameters()}


def test_same_seed_same_weights_whatever_was_drawn_before(net):
    first = values(net)
    np.random.rand(100)
    for parameter in reversed(list(net.get_parameters())):
        parameter.set_data(parameter.value() * 0 - 1)
    init_parameters(net, 5)
    for name, value in values(net).items():
        np.testing.assert_array_equal(value, first[name], err_msg=name)
    init_parameters(net, 6)
    drawn = [name for name, value in values(net).items() if not np.array_equal(value, first[name])]
    assert {name for name in first if name.endswith("weight")} == set(drawn)


def test_sizes(net):
    for name, value in values(net).items():
        if name.endswith("bn3.gamma"):
            expected = 0.2 if "layer1" in name else 0.0
            np.testing.assert_array_equal(value, np.float32(expected), err_msg=name)
        elif "conv" in name and name.startswith("backbone") and value.size > 500:
            std = np.sqrt(2 / np.prod(value.shape[1:]))
            assert value.std() == pytest.approx(std, rel=0.1), name
        elif "shared_fc" in name and name.endswith("weight"):
            bound = np.sqrt(6 / sum(value.shape))
            assert 0.9 * bound < np.abs(value).max() <= bound, name
        elif "rpn_conv.weight" in name:
            assert value.std() == pytest.approx(0.01, rel=0.1), name
