"""The whole detector against recorded features, maps, losses, gradients and updates."""

import json

import numpy as np
import pytest
from mindspore import nn

from src.FasterRcnn.faster_rcnn_resnet50v1 import Faster_Rcnn_Resnet
from src.network_define import LossNet, TrainOneStepCell, WithLossCell

LOSSES = ["rpn_loss", "rcnn_loss", "rpn_cls_loss", "rpn_reg_loss", "rcnn_cls_loss", "rcnn_reg_loss"]
SUBSAMPLE = {
    "C2": np.s_[:, ::4, ::2, ::2],
    "C3": np.s_[:, ::4],
    "C4": np.s_[:, ::4],
    "P2": np.s_[:, ::4, ::2, ::2],
    "P3": np.s_[:, ::2],
}
WEIGHT_DECAY = 1e-5


def l2(array):
    """The norm, summed in double precision."""
    return np.linalg.norm(array.astype(np.float64))


class Forward(nn.Cell):
    """Everything between image and losses, in one graph."""

    def __init__(self, net):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, image, image_shape, box, label, valid):
        features = self.net.backbone(image)
        levels = self.net.fpn_ncek(features)
        maps = self.net.rpn_with_loss(levels, image_shape, self.net.anchor_list, box, label, valid)
        return features, levels, maps[1], maps[2], self.net(image, image_shape, box, label, valid)


class Step:
    """A detector with recorded weights, and what its updates were."""

    def __init__(self, golden, case, gts):
        self.net = Faster_Rcnn_Resnet(golden.config(case))
        golden.set_weights(self.net)
        self.net.set_train()
        self.inputs = golden.inputs(gts)
        self.start = self.values()
        self.optimizer = nn.SGD(
            self.net.trainable_params(), 0.002, momentum=0.91, weight_decay=WEIGHT_DECAY
        )
        self.cell = TrainOneStepCell(
            WithLossCell(self.net, LossNet()), self.optimizer, scale_sense=256
        )

    def values(self):
        return {p.name: p.asnumpy().copy() for p in self.net.get_parameters()}

    def update(self):
        return float(self.cell(*self.inputs).asnumpy())

    def first_gradients(self):
        """The gradients of the first update: momentum then holds them with the weight decay."""
        return {
            p.name: slot.asnumpy() - np.float32(WEIGHT_DECAY) * self.start[p.name]
            for p, slot in zip(self.net.trainable_params(), self.optimizer.accum)
        }


@pytest.fixture(scope="module")
def losses(golden):
    return json.loads((golden.folder / "net_losses.json").read_text())


@pytest.fixture(scope="module")
def main16(golden):
    return Step(golden, "main16", 16)


@pytest.fixture(scope="module")
def forward(golden, main16):
    """What the network with the initial weights gives."""
    return Forward(main16.net)(*main16.inputs)


@pytest.fixture(scope="module")
def three_updates(main16, forward):
    """Losses of three updates, and what they left behind; after the forward pass, by fixture."""
    total = [main16.update()]
    gradients, first = main16.first_gradients(), main16.values()
    total += [main16.update(), main16.update()]
    return total, gradients, first, main16.values()


def test_weights_are_the_recorded_ones(golden, main16):
    check = np.load(golden.folder / "net_weights_check.npz")
    sums = [main16.start[name].sum(dtype=np.float64) for name in check["names"]]
    np.testing.assert_allclose(sums, check["sum"], rtol=1e-9, atol=1e-9)


def test_feature_maps(golden, forward):
    recorded = np.load(golden.folder / "net_forward.npz")
    names = [f"C{i}" for i in range(2, 6)] + [f"P{i}" for i in range(2, 7)]
    maps = dict(zip(names, [*forward[0], *forward[1]]))
    maps.update({f"rpn_cls{i}": level for i, level in enumerate(forward[2], 2)})
    maps.update({f"rpn_reg{i}": level for i, level in enumerate(forward[3], 2)})
    for name, tensor in maps.items():
        values = tensor.asnumpy()[SUBSAMPLE.get(name, np.s_[:])]
        tolerance = 1e-4 * np.abs(recorded[name]).max()
        np.testing.assert_allclose(values, recorded[name], atol=tolerance, err_msg=name)


def test_six_losses(forward, losses):
    for name, loss in zip(LOSSES, forward[4]):
        assert loss.shape == (1,)
        assert float(loss.asnumpy()) == pytest.approx(losses["main16"][name], rel=1e-4), name


def assert_gradients(gradients, recorded):
    norms = [l2(gradients[name]) for name in recorded["names"]]
    np.testing.assert_allclose(norms, recorded["l2"], rtol=5e-3, atol=1e-9)


def test_gradients(golden, three_updates):
    recorded = np.load(golden.folder / "net_grads_main16.npz")
    gradients = three_updates[1]
    assert_gradients(gradients, recorded)
    for name in recorded["names"]:
        expected = recorded[f"sample/{name}"]
        stride = max(1, int(np.ceil(gradients[name].size / 512)))
        stride += stride > 1 and stride % 2 == 0
        found = gradients[name].ravel()[::stride]
        assert l2(found - expected) <= 5e-2 * l2(expected), name


def test_three_updates(golden, main16, three_updates):
    recorded = np.load(golden.folder / "net_sgd3.npz")
    total, _, *values = three_updates
    np.testing.assert_allclose(total, recorded["losses"], rtol=1e-3)
    for step, weights in zip((1, 3), values):
        moved = [l2(weights[n] - main16.start[n]) for n in recorded["names"]]
        norms = [l2(weights[n]) for n in recorded["names"]]
        np.testing.assert_allclose(norms, recorded[f"norm_step{step}"], rtol=1e-5)
        above_rounding = recorded[f"dnorm_step{step}"] > 1e-4 * recorded[f"norm_step{step}"]
        np.testing.assert_allclose(
            np.array(moved)[above_rounding],
            recorded[f"dnorm_step{step}"][above_rounding],
            rtol=5e-3,
        )
    frozen = set(main16.start) - set(recorded["names"])
    assert len(frozen) == 139
    for name in frozen:
        np.testing.assert_array_equal(values[-1][name], main16.start[name])


@pytest.mark.slow
@pytest.mark.parametrize("case, gts", [("main128", 128), ("def16", 16)])
def test_other_cases(golden, losses, case, gts):
    """Many ground truths; usual anchors and pooling scale."""
    step = Step(golden, case, gts)
    assert step.update() == pytest.approx(losses[case]["total_loss"], rel=1e-4)
    assert_gradients(step.first_gradients(), np.load(golden.folder / f"net_grads_{case}.npz"))
