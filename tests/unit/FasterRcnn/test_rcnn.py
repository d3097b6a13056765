"""The box head's losses against the formulas, with and without a background class of its own."""

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.FasterRcnn.rcnn import Rcnn
from src.model_utils.config import load_config

CLASSES, FEATURES = 3, 8
# Background, two objects, an object in a row that does not count, background in one.
LABELS = np.array([0, 1, 2, 1, 0], np.int32)
MASK = np.array([1, 1, 1, 0, 0], np.float32)


@pytest.fixture(autouse=True)
def graph_mode():
    mindspore.set_context(mode=mindspore.GRAPH_MODE, device_target="CPU")


def make_head(without_bg_loss):
    mindspore.set_seed(1)
    values = {"without_bg_loss": without_bg_loss, "rcnn_fc_out_channels": 6}
    weights = {"rcnn_loss_cls_weight": 1, "rcnn_loss_reg_weight": 2}
    return Rcnn(load_config(**values, **weights), FEATURES, 1, CLASSES)


def inputs():
    rng = np.random.default_rng(3)
    features = rng.standard_normal((len(LABELS), FEATURES, 1, 1)).astype(np.float32)
    targets = 3 * rng.standard_normal((len(LABELS), 4)).astype(np.float32)
    return [Tensor(array) for array in (features, targets, LABELS, MASK)]


def expected(logits, offsets, targets, without_bg_loss):
    """Mean cross entropy and smooth L1 of the true class's offsets, in float64."""
    logits, offsets = np.float64(logits), np.float64(offsets).reshape(len(LABELS), -1, 4)
    entropy = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(LABELS)), LABELS]
    regression = 0.0
    for row in np.flatnonzero((LABELS > 0) & (MASK > 0)):
        apart = np.abs(offsets[row, LABELS[row] - without_bg_loss] - targets[row])
        regression += np.where(apart < 1, apart**2 / 2, apart - 0.5).sum()
    counted = MASK.sum()
    return (entropy * MASK).sum() / counted, regression / (counted + 1e-4 * without_bg_loss)


@pytest.mark.parametrize("without_bg_loss", [True, False])
def test_losses_are_those_of_the_counted_rows(without_bg_loss):
    head = make_head(without_bg_loss)
    head.set_train(False)
    _, logits, offsets, _ = head(*inputs())
    head.set_train(True)
    total, entropy, regression, _ = (x for x in head(*inputs()))
    due = expected(logits.asnumpy(), offsets.asnumpy(), inputs()[1].asnumpy(), without_bg_loss)
    np.testing.assert_allclose([float(entropy), float(regression)], due, rtol=1e-5)
    np.testing.assert_allclose(float(total), due[0] + 2 * due[1], rtol=1e-5)


class Total(nn.Cell):
    """The total loss alone."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def construct(self, *words):
        return self.head(*words)[0]


def test_the_offsets_of_the_background_are_not_trained():
    head = make_head(False)
    head.set_train(True)
    grads = ops.GradOperation(get_by_list=True)(Total(head), head.reg_scores.trainable_params())
    for grad in grads(*inputs()):
        columns = grad.asnumpy().reshape(-1, CLASSES, 4)
        assert not columns[:, 0].any()
        assert columns[:, 1].any() and columns[:, 2].any()
