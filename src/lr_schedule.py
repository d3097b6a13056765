"""Learning rates: linear warm-up, then cosine decay or division by 10."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Callable

import mindspore
import numpy as np
from mindspore import Tensor, ops
from mindspore.nn.learning_rate_schedule import LearningRateSchedule

from src.model_utils.config import Config, setting

DROP = 0.1
LONGEST_WARMUP = 1 / 3


def linear_warmup_learning_rate(
    current_step: int, warmup_steps: int, base_lr: float, init_lr: float
) -> float:
    """Return the rate at `current_step`, linear from `init_lr` to `base_lr` at `warmup_steps`."""
    return float(init_lr) + (float(base_lr) - float(init_lr)) / warmup_steps * current_step


def a_cosine_learning_rate(
    current_step: int, base_lr: float, warmup_steps: int, decay_steps: int
) -> float:
    """Return the rate of half a cosine from `warmup_steps` that reaches 0 `decay_steps` later.

    Loshchilov and Hutter, "SGDR", 2017, equation 5, without restarts.
    """
    part = (current_step - warmup_steps) / decay_steps
    return (1 + math.cos(math.pi * part)) / 2 * float(base_lr)


def dynamic_lr(config: Config, steps_per_epoch: int) -> list[float]:
    """Return the rates of warm-up and cosine over `config.epoch_size + 1` epochs, one per step.

    The cosine has the length of the whole list, so the last rates stay above 0.
    """
    total = steps_per_epoch * (config.epoch_size + 1)
    return _warmed_up(config, total, config.warmup_step, _cosine(config, config.warmup_step, total))


def multistep_lr(config: Config, dataset_size: int) -> list[float]:
    """Return one rate per step for `config.epoch_size` epochs, divided by 10 at each milestone.

    Args:
        config: the keys base_lr, milestones (epochs, counted from 0) and epoch_size are read.
        dataset_size: number of steps in an epoch.
    """
    total = dataset_size * config.epoch_size
    drops = _drops(config, setting(config, "milestones"), dataset_size)
    return [drops(step) for step in range(total)]


def run_lr(
    config: Config, steps_per_iteration: int, iterations: int, steps_per_epoch: int
) -> np.ndarray:
    """Return the rates of a whole federated run, exactly one for each of its steps.

    The warm-up takes `config.warmup_step` steps, but at most a third of the run, so that a short
    run gets past it. Then `config.lr_type` decides: "dynamic" is a cosine that ends at the run's
    end; "step" divides by 10 at the epochs of `config.sgd_step`; "multistep" does so at those of
    `config.milestones` and has no warm-up.

    Args:
        config: the keys base_lr, lr_type, warmup_step, warmup_ratio, sgd_step and milestones are
            read.
        steps_per_iteration: number of local steps between two synchronisations.
        iterations: number of synchronisations in the run.
        steps_per_epoch: number of steps in one pass over the silo's images.

    Returns:
        (steps_per_iteration * iterations,) float32.
    """
    total = steps_per_iteration * iterations
    warmup = min(config.warmup_step, int(total * LONGEST_WARMUP))
    if config.lr_type == "multistep":
        warmup = 0
        after_warmup = _drops(config, config.milestones, steps_per_epoch)
    elif config.lr_type == "step":
        after_warmup = _drops(config, config.sgd_step, steps_per_epoch)
    else:
        after_warmup = _cosine(config, warmup, total - warmup)
    return np.array(_warmed_up(config, total, warmup, after_warmup), dtype=np.float32)


def _cosine(config: Config, warmup: int, decay_steps: int) -> Callable[[int], float]:
    return lambda step: a_cosine_learning_rate(step, config.base_lr, warmup, decay_steps)


def _drops(config: Config, epochs: Sequence[int], steps_per_epoch: int) -> Callable[[int], float]:
    def rate(step: int) -> float:
        drops = sum(step >= epoch * steps_per_epoch for epoch in epochs)
        return config.base_lr * DROP**drops

    return rate


def _warmed_up(
    config: Config, total: int, warmup: int, after_warmup: Callable[[int], float]
) -> list[float]:
    """Return `total` rates: the warm-up's, then `after_warmup`'s, a function of the step."""
    base = config.base_lr
    return [
        linear_warmup_learning_rate(step, warmup, base, base * config.warmup_ratio)
        if step < warmup
        else after_warmup(step)
        for step in range(total)
    ]


class RunSchedule(LearningRateSchedule):
    """Rates for an optimiser, one per step; after the end the last one is kept.

    An optimiser with the bare array reads 0 there, and training stops silently.

    Args:
        rates: (steps,) float32, not empty.
    """

    def __init__(self, rates: np.ndarray):
        super().__init__()
        self.rates = Tensor(np.asarray(rates, dtype=np.float32))
        self.last = Tensor(len(rates) - 1, mindspore.int32)

    def construct(self, global_step: Tensor) -> Tensor:
        """Return the rate of step `global_step`, counted from 0."""
        return ops.gather(self.rates, ops.minimum(global_step, self.last), 0)
