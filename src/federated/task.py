"""What a worker asks of the thing that it trains."""

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
        images: trained on in an epoch, in whole batches; the silo's weight in the mean.
        converted: images that the silo has.
    """

    dataset: ms.dataset.Dataset
    steps_per_epoch: int
    images: int
    converted: int
    network: nn.Cell
    origin: str

    @property
    def aspects(self) -> dict[str, object]:
        """What must agree between silos without travelling."""

    def skip(self, steps: int) -> None:
        """Begin with the batch that comes after the first `steps` of a run."""

    def rates(self, steps_per_iteration: int, iterations: int) -> np.ndarray:
        """Learning rate of each step of the run."""

    def training_step(self, rates: np.ndarray, steps_done: int, terms: Terms) -> nn.Cell:
        """The cell that trains on one batch, with what the aggregation algorithm adds."""

    def callbacks(self, *args: Any, **kwargs: Any) -> list[Callback]:
        """What the task logs."""

    def evaluate(self) -> dict[str, Any]:
        """Figures of the network as it is now; asked for with run_eval alone."""
