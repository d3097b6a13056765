"""The training step on a network of one weight, and the line that is logged."""

import re
from types import SimpleNamespace

import mindspore
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from src.federated.algorithms import Terms
from src.model_utils.config import load_config
from src.network_define import LossCallBack, LossNet, TrainOneStepCell, WithLossCell, train_cell

FACTORS = np.array([3.0, -4.0], np.float32)


class Line(nn.Cell):
    """Six losses, of which the first two add up to sum(weight * x)."""

    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor([1.0, 2.0], mindspore.float32), name="weight")

    def construct(self, x, img_shape, gt_bboxe, gt_label, gt_num):
        loss = ops.reshape(ops.reduce_sum(self.weight * x), (1,)) / 2
        return loss, loss, x, img_shape, gt_bboxe, gt_label


@pytest.fixture(scope="module", autouse=True)
def graph_mode():
    mindspore.set_context(mode=mindspore.GRAPH_MODE)


def updates(make_cell, steps=1):
    """How the weight moves in each step, and the losses."""
    net = Line()
    cell = make_cell(net)
    inputs = [Tensor(FACTORS)] * 5
    moves, losses = [], []
    for _ in range(steps):
        before = net.weight.asnumpy().copy()
        losses.append(cell(*inputs).asnumpy())
        moves.append(net.weight.asnumpy() - before)
    return np.array(moves), np.array(losses)


def plain_cell(net, **settings):
    return TrainOneStepCell(
        WithLossCell(net, LossNet()), nn.SGD(net.trainable_params(), 0.5), **settings
    )


@pytest.mark.parametrize("scale", [1, 256, Tensor([64.0], mindspore.float32)])
def test_the_gradient_is_unscaled_once(scale):
    moves, losses = updates(lambda net: plain_cell(net, scale_sense=scale))
    np.testing.assert_allclose(moves[0], -0.5 * FACTORS)
    np.testing.assert_allclose(losses, [[-5.0]])


@pytest.mark.parametrize("clip_norm, length", [(1.0, 1.0), (10.0, 5.0)])
def test_clipping_limits_the_norm(clip_norm, length):
    moves, _ = updates(
        lambda net: plain_cell(net, scale_sense=256, grad_clip=True, clip_norm=clip_norm)
    )
    np.testing.assert_allclose(moves[0], -0.5 * FACTORS * length / 5, rtol=1e-5)


def test_train_cell_follows_the_configuration():
    config = load_config(momentum=0.5, weight_decay=0.0)
    rates = np.array([0.1, 0.2], np.float32)
    moves, _ = updates(lambda net: train_cell(net, config, rates), steps=3)
    momentum = np.array([[1.0], [1.5], [1.75]])
    np.testing.assert_allclose(moves, -momentum * [[0.1], [0.2], [0.2]] * FACTORS, rtol=1e-5)


class NoteRate(nn.Cell):
    """A term that takes the rate that it is called with off the weight, in units of its own."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def construct(self, rate):
        return ops.assign_sub(self.weight, ops.ones_like(self.weight) * rate * 1000)


def test_the_weight_term_gets_the_rate_of_its_step():
    rates = np.array([0.1, 0.2, 0.4], np.float32)

    def cell(net):
        terms = Terms(weight=NoteRate(net.weight))
        return train_cell(net, load_config(momentum=0.0, weight_decay=0.0), rates, terms)

    moves, _ = updates(cell, steps=4)
    due = np.array([[0.1], [0.2], [0.4], [0.4]])
    np.testing.assert_allclose(moves, -due * (FACTORS + 1000), rtol=1e-5)


def run_epoch(callback, losses):
    """Call back as `Model.train` does for one epoch of as many steps as losses."""
    for number, loss in enumerate(losses, 1):
        params = SimpleNamespace(
            cur_step_num=number, batch_num=len(losses), net_outputs=Tensor([loss])
        )
        context = SimpleNamespace(original_args=lambda params=params: params)
        callback.on_train_step_end(context)
    callback.on_train_epoch_end(context)


def test_loss_lines_count_epochs_on(tmp_path, capsys):
    callback = LossCallBack(rank_id=0, lr=[0.1, 0.2, 0.3], name="worker_3", folder=tmp_path)
    run_epoch(callback, [5.25, 4.0])
    run_epoch(callback, [3.0, 2.0])
    lines = capsys.readouterr().out.splitlines()
    stamp = r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\]\[worker_3\]"
    assert re.match(stamp + "epoch: 1 step: 1 total_loss: 5.2500000$", lines[0])
    assert [re.search(r"\]epoch: (\d step: \d)", line).group(1) for line in lines] == [
        "1 step: 1", "1 step: 2", "2 step: 1", "2 step: 2",
    ]  # fmt: skip


def test_the_loss_file_has_upstreams_form(tmp_path):
    callback = LossCallBack(rank_id=0, lr=[0.1, 0.0025, 0.3], folder=tmp_path)
    run_epoch(callback, [5.2493254, 4.0])
    run_epoch(callback, [3.0, 2.0])
    lines = (tmp_path / "loss_0.log").read_text().splitlines()
    assert [re.fullmatch(r"\d+ s \| (.*)", line)[1] for line in lines] == [
        "epoch: 1 step: 1 total_loss: 5.24933  lr: 0.100000",
        "epoch: 1 step: 2 total_loss: 4.00000  lr: 0.002500",
        "epoch: 2 step: 1 total_loss: 3.00000  lr: 0.300000",
        "epoch: 2 step: 2 total_loss: 2.00000  lr: 0.300000",
    ]


def test_the_loss_file_counts_whole_seconds_from_the_start(tmp_path, monkeypatch):
    now = 100.5
    monkeypatch.setattr("src.network_define.time.monotonic", lambda: now)
    callback = LossCallBack(folder=tmp_path)
    now += 61.7
    run_epoch(callback, [2.0])
    text = (tmp_path / "loss_0.log").read_text()
    assert text == "61 s | epoch: 1 step: 1 total_loss: 2.00000\n"


def test_only_the_last_step_of_an_epoch(tmp_path, capsys):
    callback = LossCallBack(per_print_times=3, folder=tmp_path, epochs_done=4, steps_done=12)
    run_epoch(callback, [3.0, 2.0, 1.0])
    assert capsys.readouterr().out.endswith("]epoch: 5 step: 3 total_loss: 1.0000000\n")
    assert callback.steps_done == 15 and callback.epochs_done == 5


def test_zero_logs_nothing(tmp_path, capsys):
    run_epoch(LossCallBack(per_print_times=0, folder=tmp_path), [3.0, 2.0])
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    callback = LossCallBack(name="worker_1", folder=tmp_path)
    with pytest.raises(FloatingPointError, match="worker_1: the loss is nan at epoch: 1 step: 2"):
        run_epoch(callback, [1.0, float("nan")])
