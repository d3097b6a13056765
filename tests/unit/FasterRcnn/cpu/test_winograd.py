"""3x3 convolution by minimal filtering against the library's, forward and both gradients."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src.FasterRcnn.cpu import blas, convolution
from src.FasterRcnn.cpu.convolution import Conv3x3

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(autouse=True)
def on_cpu():
    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Plain(nn.Cell):
    """The library's convolution of given weights."""

    def __init__(self, outputs: int):
        super().__init__()
        self.convolve = ops.Conv2D(outputs, 3, pad_mode="pad", pad=1)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.convolve(x, weight)


def library(x: np.ndarray, weight: np.ndarray, grad: np.ndarray) -> list[np.ndarray]:
    """Result, gradient of x, gradient of the weight."""
    cell = Plain(len(weight))
    inputs = [Tensor(x), Tensor(weight)]
    grads = ops.GradOperation(get_all=True, sens_param=True)(cell)(*inputs, Tensor(grad))
    return [t.asnumpy() for t in (cell(*inputs), *grads)]


def ours(x: np.ndarray, weight: np.ndarray, grad: np.ndarray, threads: int) -> list[np.ndarray]:
    return [
        convolution.convolve(x, weight, threads),
        convolution.input_gradient(grad, weight, threads),
        convolution.weight_gradient(x, grad, threads),
    ]


@pytest.mark.parametrize(
    ("batch", "inputs", "outputs", "height", "width"),
    [(2, 8, 16, 12, 20), (1, 3, 5, 7, 9), (3, 4, 4, 1, 1), (1, 5, 3, 4, 130), (2, 6, 2, 131, 5)],
)
def test_result_and_gradients_are_the_librarys(batch, inputs, outputs, height, width):
    x = drawn(batch, inputs, height, width)
    weight = drawn(outputs, inputs, 3, 3, seed=1) * 0.2
    grad = drawn(batch, outputs, height, width, seed=2)
    expected = library(x, weight, grad)
    for mine, theirs in zip(ours(x, weight, grad, threads=2), expected):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(mine / scale, theirs / scale, **CLOSE)


def test_result_does_not_depend_on_the_number_of_threads():
    x, weight, grad = drawn(2, 32, 24, 40), drawn(48, 32, 3, 3), drawn(2, 48, 24, 40)
    alone = ours(x, weight, grad, threads=1)
    for threads in (2, 3, 40):
        for one, many in zip(alone, ours(x, weight, grad, threads)):
            np.testing.assert_array_equal(one, many)


def test_large_maps_go_through_in_pieces(monkeypatch):
    x, weight, grad = drawn(2, 4, 20, 28), drawn(4, 4, 3, 3), drawn(2, 4, 20, 28)
    whole = ours(x, weight, grad, threads=2)
    monkeypatch.setattr(convolution, "TILES_AT_ONCE", 14)
    for one, other in zip(whole, ours(x, weight, grad, threads=2)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-3)


class Two(nn.Cell):
    """Two convolutions, one with a bias."""

    def __init__(self):
        super().__init__()
        ms.set_seed(3)
        self.first = Conv3x3(4, 6, weight_init="xavier_uniform")
        self.second = Conv3x3(
            6, 5, has_bias=True, weight_init="xavier_uniform", bias_init=Tensor(drawn(5))
        )

    def construct(self, x: Tensor) -> Tensor:
        return ops.reduce_sum(self.second(ops.relu(self.first(x))) ** 2)


def loss_and_gradients(x: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    cell = Two()
    weights = ms.ParameterTuple(cell.trainable_params())
    loss, grads = ops.value_and_grad(cell, None, weights)(Tensor(x))
    return float(loss.asnumpy()), {p.name: g.asnumpy() for p, g in zip(weights, grads)}


def test_cell_trains_like_the_librarys(monkeypatch):
    x = drawn(2, 4, 12, 12)
    calls = []
    forward = convolution.convolve
    monkeypatch.setattr(convolution, "convolve", lambda *args: calls.append(1) or forward(*args))
    loss, grads = loss_and_gradients(x)
    assert calls
    monkeypatch.setattr(blas, "usable", lambda: False)
    calls.clear()
    expected_loss, expected = loss_and_gradients(x)
    assert not calls
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, expected[name], rtol=1e-3, atol=1e-3, err_msg=name)


def test_parameters_are_those_of_conv2d():
    mine, theirs = Conv3x3(3, 4, has_bias=True), nn.Conv2d(3, 4, 3, has_bias=True)
    shapes = [[(p.name, p.shape) for p in cell.get_parameters()] for cell in (mine, theirs)]
    assert shapes[0] == shapes[1]


def test_few_tiles_for_many_channels_are_left_to_the_library():
    assert convolution.worth_it(2, 256, 256, 48, 80)
    assert not convolution.worth_it(1, 512, 512, 6, 10)
