"""What an aggregation algorithm adds to a training step, as cells over the step's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops


class Terms(NamedTuple):
    """Cells that a training step applies where they are not None.

    Attributes:
        gradient: takes and gives the tuple of gradients, in the order of the step's weights.
        weight: called with the step's learning rate, (1,), after the optimiser's update.
    """

    gradient: nn.Cell | None = None
    weight: nn.Cell | None = None


NO_TERMS = Terms()


pulled = ops.MultitypeFuncGraph("pulled")


@pulled.register("Tensor", "Tensor", "Tensor", "Tensor")
def tensor_pulled(rate: Tensor, grad: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """The gradient with that of rate/2 * ||weight - target||^2."""
    return grad + rate * (weight - target)


class ProximalTerm(nn.Cell):
    """The gradient of rate/2 * ||w - w_global||^2, added to that of the loss.

    Li et al., "Federated optimization in heterogeneous networks", 2020, equation 2. The gradient
    of the sum is the sum of the gradients, so this is exact and needs no second backward pass.

    Args:
        weights: all that the step trains, in its order.
        names: those of them that are pulled back to the global model.
        rate: the factor, iid_rate of the federation's file.
    """

    def __init__(self, weights: Sequence[Parameter], names: Sequence[str], rate: float):
        super().__init__(auto_prefix=False)
        chosen = set(names)
        self._held = [weight for weight in weights if weight.name in chosen]
        self._copies = _beside(self._held, "global_weights")
        copies = {weight.name: copy for weight, copy in zip(self._held, self._copies)}
        self.weights = ParameterTuple(weights)
        # A weight that is not pulled is its own target.
        self.targets = ParameterTuple([copies.get(weight.name, weight) for weight in weights])
        self.rate = Tensor(rate, ms.float32)
        self.each = ops.HyperMap()

    def load(self, features: Mapping[str, np.ndarray]) -> None:
        """Take the global model to be pulled back to."""
        _fill(self._copies, self._held, features)

    def construct(self, grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The gradients with the term's added."""
        return self.each(ops.partial(pulled, self.rate), grads, self.weights, self.targets)


class DriftTerm(nn.Cell):
    """Moves the weights against the silo's drift, by learning rate times (c - c_silo).

    Karimireddy et al., "SCAFFOLD", 2020, algorithm 1, line 10; outside the optimiser, because its
    momentum would multiply the correction.

    Args:
        weights: those that are corrected.

    Attributes:
        total: sum of the learning rates since `load`, (1,).
    """

    def __init__(self, weights: Sequence[Parameter]):
        super().__init__(auto_prefix=False)
        self.weights = ParameterTuple(weights)
        self.drifts = ParameterTuple(_beside(weights, "drift"))
        self.total = Parameter(Tensor(np.zeros(1, np.float32)), "rates", requires_grad=False)

    def load(self, drifts: Mapping[str, np.ndarray]) -> None:
        """Take c - c_silo of each weight, and begin the sum of learning rates."""
        _fill(self.drifts, self.weights, drifts)
        self.total.set_data(Tensor(np.zeros(1, np.float32)))

    def construct(self, rate: Tensor) -> Tensor:
        """Correct the weights and add up the rates; gives the rate."""
        for number in range(len(self.drifts)):
            ops.assign_sub(self.weights[number], rate * self.drifts[number])
        ops.assign_add(self.total, rate)
        return rate


def _beside(weights: Sequence[Parameter], prefix: str) -> list[Parameter]:
    """Zeros like the weights, which nobody trains."""
    return [
        Parameter(
            Tensor(np.zeros(weight.shape, np.float32)),
            name=f"{prefix}.{weight.name}",
            requires_grad=False,
        )
        for weight in weights
    ]


def _fill(
    targets: Sequence[Parameter], weights: Sequence[Parameter], arrays: Mapping[str, np.ndarray]
) -> None:
    for target, weight in zip(targets, weights):
        target.set_data(Tensor(arrays[weight.name].reshape(weight.shape)))
