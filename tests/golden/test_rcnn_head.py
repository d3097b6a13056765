"""The box head alone against recorded logits, losses and gradients."""

import numpy as np
import pytest
from mindspore import ParameterTuple, Tensor, nn, ops

from src.FasterRcnn.rcnn import Rcnn


class LossAndGradients(nn.Cell):
    """Losses, gradient of the total wrt. the features, gradients wrt. the weights."""

    def __init__(self, head):
        super().__init__()
        self.head = head
        self.total = TotalLoss(head)
        self.weights = ParameterTuple(head.trainable_params())
        self.grad = ops.GradOperation(get_all=True, get_by_list=True)

    def construct(self, features, targets, labels, mask):
        losses = self.head(features, targets, labels, mask)[:3]
        gradients = self.grad(self.total, self.weights)
        inputs, weights = gradients(features, targets, labels, mask)
        return losses, inputs[0], weights


class TotalLoss(nn.Cell):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def construct(self, *inputs):
        return self.head(*inputs)[0]


@pytest.fixture(scope="module")
def recorded(golden):
    return dict(np.load(golden.folder / "rcnn_head.npz"))


@pytest.fixture(scope="module")
def head(golden):
    cell = Rcnn(golden.config("main16"), 12544, 2, 81)
    golden.set_weights(cell, "rcnn.")
    return cell


@pytest.fixture(scope="module")
def inputs(recorded):
    rng = np.random.default_rng(102 + 50)
    shape = (len(recorded["labels"]), 256, 7, 7)
    features = rng.standard_normal(shape).astype(np.float32)
    np.testing.assert_allclose(features.sum(dtype=np.float64), recorded["input_check"][0])
    return [Tensor(features), *(Tensor(recorded[key]) for key in ("targets", "labels", "mask"))]


def test_logits(head, inputs, recorded):
    head.set_train(False)
    _, logits, offsets, _ = head(*inputs)
    np.testing.assert_allclose(logits.asnumpy(), recorded["cls_logits"], atol=1e-4)
    np.testing.assert_allclose(offsets.asnumpy(), recorded["reg_logits"], atol=1e-4)


def test_losses_and_gradients(head, inputs, recorded):
    head.set_train(True)
    names = [p.name for p in head.trainable_params()]
    losses, input_grad, grads = LossAndGradients(head)(*inputs)
    np.testing.assert_allclose([float(x.asnumpy()) for x in losses], recorded["losses"], rtol=1e-4)
    rows = np.linalg.norm(input_grad.asnumpy().reshape(len(recorded["labels"]), -1), axis=1)
    np.testing.assert_allclose(rows, recorded["grad_input_row_norm"], rtol=1e-3, atol=1e-7)
    by_name = {f"rcnn.{name}": grad.asnumpy() for name, grad in zip(names, grads)}
    norms = [np.linalg.norm(by_name[name]) for name in recorded["grad_param_names"]]
    np.testing.assert_allclose(norms, recorded["grad_param_norm"], rtol=1e-4)
    for key in (key for key in recorded if key.startswith("grad/")):
        np.testing.assert_allclose(by_name[key[5:]], recorded[key], atol=1e-5, rtol=1e-3)
