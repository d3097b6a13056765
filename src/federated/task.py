"""The interface between a worker and what it trains."""

from __future__ import annotations

from typing import Any, Protocol

import mindspore as ms
import numpy as np
from mindspore import nn
from mindspore.train.callback import Callback

from src.federated.algorithms import Terms


class Task(Protocol):
    """What a worker trains; `src.training.DetectorTask` is one.

    Attributes:
        images: number of images trained on in an epoch, in whole batches; the silo's weight in the
            mean.
        converted: number of images that the silo has.
        remarks: lines on the data for the log; those that begin with "WARNING: " are events of the
            report.
    """

    dataset: ms.dataset.Dataset
    steps_per_epoch: int
    images: int
    converted: int
    network: nn.Cell
    origin: str
    remarks: list[str]

    @property
    def aspects(self) -> dict[str, object]:
        """Return what silos must agree on but do not exchange."""

    def skip(self, steps: int) -> None:
        """Begin with the batch after the first `steps` steps of a run."""

    def rates(self, steps_per_iteration: int, iterations: int) -> np.ndarray:
        """Return the learning rate of each step of the run."""

    def training_step(self, rates: np.ndarray, steps_done: int, terms: Terms) -> nn.Cell:
        """Make the cell that trains on one batch, with the aggregation algorithm's terms."""

    def callbacks(self, *args: Any, **kwargs: Any) -> list[Callback]:
        """Return the callbacks that log for the task."""

    def evaluate(self) -> dict[str, Any]:
        """Return metrics of the network as it is now; called only with run_eval."""
