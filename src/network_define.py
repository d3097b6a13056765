"""What training adds to the detector: the loss, one training step, the logged line."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.train.callback import Callback, RunContext

from src.FasterRcnn.precision import head_dtype
from src.federated.algorithms import NO_TERMS, Terms
from src.files import Lossy
from src.job.log_files import RotatingLog, stamp
from src.lr_schedule import RunSchedule
from src.model_utils.config import Config, setting
from src.printing import print


class LossCallBack(Callback):
    """Logs the loss, as one line on standard output and in `loss_{rank_id}.log`.

    The line is `[time][name]epoch: E step: S total_loss: L`; the file has upstream's form,
    `N s | epoch: E step: S total_loss: L  lr: R`, with the whole seconds since the callback was
    created and the learning rate. Epoch numbers continue when the same callback is used in several
    calls of `Model.train`.

    Args:
        per_print_times: number of steps between log lines; an epoch's number of steps logs its last
            step, 0 logs none.
        rank_id: part of the file's name.
        lr: learning rates of all steps.
        name: the name of the trainer, such as `worker_0`.
        folder: the file's folder; None is the current folder.
        log_max_bytes, log_files_kept: rotation of that file, see `RotatingLog`.
        epochs_done, steps_done: what earlier runs of this silo have trained.
        steps_skipped: steps of the first epoch that an earlier run has trained.

    Raises:
        FloatingPointError: at the end of a step whose loss is not finite.
    """

    def __init__(
        self,
        per_print_times: int = 1,
        rank_id: int = 0,
        lr: np.ndarray | list[float] | None = None,
        name: str = "worker_0",
        folder: str | Path | None = None,
        epochs_done: int = 0,
        steps_done: int = 0,
        log_max_bytes: int = 0,
        log_files_kept: int = 0,
        steps_skipped: int = 0,
    ):
        super().__init__()
        self.per_print_times = per_print_times
        self.lr = lr
        self.name = name
        self.path = Path(folder or ".") / f"loss_{rank_id}.log"
        self.epochs_done = epochs_done
        self.steps_done = steps_done
        self._rotation = (log_max_bytes, log_files_kept)
        self._file = Lossy(self.path.name, partial(print, flush=True))
        self.steps_skipped = steps_skipped
        self._begin = time.monotonic()

    def step_end(self, run_context: RunContext) -> None:
        """Log the step that has just ended."""
        params = run_context.original_args()
        step = (params.cur_step_num - 1 + self.steps_skipped) % params.batch_num + 1
        loss = mean_loss(params.net_outputs)
        self.steps_done += steps_of_call(params)
        where = f"epoch: {self.epochs_done + 1} step: {step}"
        if self.per_print_times and step % self.per_print_times == 0:
            print(f"{stamp(self.name)}{where} total_loss: {loss:.7f}", flush=True)
            seconds = int(time.monotonic() - self._begin)
            line = f"{seconds} s | {where} total_loss: {loss:.5f}{self._rate()}\n"
            self._file.do(partial(self._write, line))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"{self.name}: the loss is {loss} at {where}; lower base_lr or set grad_clip: True"
            )

    def epoch_end(self, run_context: RunContext) -> None:
        """Count the epoch."""
        self.epochs_done += 1

    def _write(self, line: str) -> None:
        # Opened each time, so that a file that somebody has moved away is created again.
        log = RotatingLog(self.path, *self._rotation)
        try:
            log.write(line)
        finally:
            log.close()

    def _rate(self) -> str:
        if self.lr is None:
            return ""
        return f"  lr: {float(self.lr[min(self.steps_done, len(self.lr)) - 1]):.6f}"


def steps_of_call(params: Any) -> int:
    """Return the training steps per call of a callback: an epoch's with data sinking."""
    return params.batch_num if getattr(params, "dataset_sink_mode", False) else 1


def mean_loss(net_outputs: Tensor | tuple | list) -> float:
    """Return the loss in a training step's result: a tensor, or a tuple that starts with one."""
    while isinstance(net_outputs, (tuple, list)):
        net_outputs = net_outputs[0]
    return float(np.mean(net_outputs.asnumpy()))


class LossNet(nn.Cell):
    """Computes the total loss from the detector's six losses."""

    def construct(
        self, x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor, x5: Tensor, x6: Tensor
    ) -> Tensor:
        """Return the sum of the first two, rpn_loss and rcnn_loss, (1,); the others are parts."""
        return x1 + x2


class WithLossCell(nn.Cell):
    """The detector and its loss as one cell.

    Args:
        backbone: the detector.
        loss_fn: a cell that takes the detector's six losses.
    """

    def __init__(self, backbone: nn.Cell, loss_fn: nn.Cell):
        super().__init__(auto_prefix=False)
        self._backbone = backbone
        self._loss_fn = loss_fn

    def construct(
        self, x: Tensor, img_shape: Tensor, gt_bboxe: Tensor, gt_label: Tensor, gt_num: Tensor
    ) -> Tensor:
        """Return the total loss (1,) of images, given shapes, boxes, labels and valid flags."""
        losses = self._backbone(x, img_shape, gt_bboxe, gt_label, gt_num)
        return self._loss_fn(*losses)

    @property
    def backbone_network(self) -> nn.Cell:
        """Return the detector."""
        return self._backbone


grad_scale = ops.MultitypeFuncGraph("grad_scale")


@grad_scale.register("Number", "Tensor")
def tensor_grad_scale(scale: float, grad: Tensor) -> Tensor:
    """Return the gradient without the loss's factor `scale`."""
    return grad * (1.0 / scale)


square_sum = ops.MultitypeFuncGraph("square_sum")


@square_sum.register("Tensor")
def tensor_square_sum(grad: Tensor) -> Tensor:
    """Return the sum of squares of a gradient, a scalar.

    Rows are summed first: on the CPU a sum over the last of two axes is fast, over all values it is
    not.
    """
    rows = ops.reshape(grad, (ops.shape(grad)[0], -1))
    return ops.reduce_sum(ops.reduce_sum(rows * rows, 1))


scaled = ops.MultitypeFuncGraph("scaled")


@scaled.register("Tensor", "Tensor")
def tensor_scaled(factor: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient times a factor."""
    return grad * factor


class ClipByGlobalNorm(nn.Cell):
    """Scales all gradients by one factor so that their global norm is at most `limit`.

    Pascanu et al., "On the difficulty of training recurrent neural networks", 2013, section 3.2.
    """

    def __init__(self, limit: float):
        super().__init__()
        self.limit = limit
        self.each = ops.HyperMap()

    def construct(self, grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the scaled gradients, in their shapes."""
        norm = ops.sqrt(ops.addn(self.each(square_sum, grads)))
        return self.each(ops.partial(scaled, self.limit / ops.maximum(norm, self.limit)), grads)


class TrainOneStepCell(nn.TrainOneStepCell):
    """One step of training, which returns the loss.

    The loss is multiplied by `scale_sense` before differentiation, and the gradient is divided by
    it once; the optimiser must not divide again.

    Args:
        network: the detector with its loss.
        optimizer: the optimiser of its trainable parameters.
        scale_sense: loss scale, a number or a tensor of one; matters in half precision only.
        grad_clip: limit the global norm of the gradient to `clip_norm`.
        clip_norm: see `grad_clip`.
        gradient_term: takes and returns the tuple of gradients, before they are clipped; None adds
            nothing.
        weight_term: called with the step's learning rate after the update; the optimiser's learning
            rate must be a schedule.
    """

    def __init__(
        self,
        network: nn.Cell,
        optimizer: nn.Optimizer,
        scale_sense: float | Tensor = 1,
        grad_clip: bool = False,
        clip_norm: float = 10.0,
        gradient_term: nn.Cell | None = None,
        weight_term: nn.Cell | None = None,
    ):
        if isinstance(scale_sense, Tensor):
            scale_sense = scale_sense.asnumpy().item()
        super().__init__(network, optimizer, sens=float(scale_sense))
        self.grad_clip = grad_clip
        self.clip = ClipByGlobalNorm(float(clip_norm))
        self.hyper_map = ops.HyperMap()
        self.gradient_term = gradient_term
        self.weight_term = weight_term

    def construct(
        self, x: Tensor, img_shape: Tensor, gt_bboxe: Tensor, gt_label: Tensor, gt_num: Tensor
    ) -> Tensor:
        """Train on one batch; return its loss (1,) before the update, without the terms."""
        inputs = (x, img_shape, gt_bboxe, gt_label, gt_num)
        loss = self.network(*inputs)
        sens = ops.ones_like(loss) * self.sens
        grads = self.grad(self.network, self.weights)(*inputs, sens)
        if self.sens != 1.0:
            grads = self.hyper_map(ops.partial(grad_scale, self.sens), grads)
        grads = self.grad_reducer(grads)
        if self.gradient_term is not None:
            grads = self.gradient_term(grads)
        if self.grad_clip:
            grads = self.clip(grads)
        if self.weight_term is None:
            return ops.depend(loss, self.optimizer(grads))
        # Read from the schedule, because the optimiser's own get_lr counts a step.
        rate = self.optimizer.learning_rate(self.optimizer.global_step)
        rate = ops.depend(rate, loss)
        grads = ops.depend(grads, rate)
        loss = ops.depend(loss, self.optimizer(grads))
        return ops.depend(loss, self.weight_term(ops.depend(rate, loss)))


def train_cell(
    net: nn.Cell, config: Config, rates: np.ndarray, terms: Terms = NO_TERMS
) -> TrainOneStepCell:
    """Make the training step of `net` with SGD and momentum, as configured.

    Args:
        net: the detector, in training mode.
        config: the keys momentum, weight_decay, loss_scale, grad_clip and grad_clip_norm are read.
        rates: learning rate of every step of the run; the last one is kept after it.
        terms: what the aggregation algorithm adds to the step.
    """
    optimizer = nn.SGD(
        net.trainable_params(),
        learning_rate=RunSchedule(rates),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    # A scale keeps small gradients from vanishing in half precision; in single it is useless work.
    half = head_dtype() == mindspore.float16
    return TrainOneStepCell(
        WithLossCell(net, LossNet()),
        optimizer,
        scale_sense=config.loss_scale if half else 1,
        grad_clip=config.grad_clip,
        clip_norm=setting(config, "grad_clip_norm"),
        gradient_term=terms.gradient,
        weight_term=terms.weight,
    )
