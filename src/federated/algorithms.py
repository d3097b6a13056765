"""The silo's side of the aggregation algorithms: what is sent and kept, what a step adds.

There is one class for each. `SiloManager` calls the methods in this order: `loaded` with a global
model, `joined`, training, `upload`, `loaded`, `ended`. What the servers do with an upload is in
docs/aggregation.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from src.errors import UserError
from src.federated.aggregation import (
    ABSOLUTE,
    CONTROL,
    FEDNOVA,
    FEDPROX,
    SCAFFOLD,
    AdaptiveSettings,
    Aggregation,
)
from src.federated.rounds import LARGEST_DATA_SIZE, Round, SyncError


class Terms(NamedTuple):
    """Cells that a training step applies if they are not None.

    Attributes:
        gradient: takes and returns the tuple of gradients, in the order of the step's weights.
        weight: called with the step's learning rate, (1,), after the optimiser's update.
    """

    gradient: nn.Cell | None = None
    weight: nn.Cell | None = None


NO_TERMS = Terms()


pulled = ops.MultitypeFuncGraph("pulled")


@pulled.register("Tensor", "Tensor", "Tensor", "Tensor")
def tensor_pulled(rate: Tensor, grad: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Return the gradient plus that of rate/2 * ||weight - target||^2."""
    return grad + rate * (weight - target)


class ProximalTerm(nn.Cell):
    """Adds the gradient of rate/2 * ||w - w_global||^2 to that of the loss.

    Li et al., "Federated optimization in heterogeneous networks", 2020, equation 2. The gradient
    of the sum is the sum of the gradients, so this is exact and needs no second backward pass.

    Args:
        weights: all weights that the step trains, in its order.
        names: the weights that are pulled back to the global model.
        rate: the factor, iid_rate in the federation's file.
    """

    def __init__(self, weights: Sequence[Parameter], names: Sequence[str], rate: float):
        super().__init__(auto_prefix=False)
        chosen = set(names)
        self._held = [weight for weight in weights if weight.name in chosen]
        self._copies = _beside(self._held, "global_weights")
        copies = {weight.name: copy for weight, copy in zip(self._held, self._copies)}
        self.weights = ParameterTuple(weights)
        # A weight that is not pulled back is its own target.
        self.targets = ParameterTuple([copies.get(weight.name, weight) for weight in weights])
        self.rate = Tensor(rate, ms.float32)
        self.each = ops.HyperMap()

    def load(self, features: Mapping[str, np.ndarray]) -> None:
        """Set the global model to which training is pulled back."""
        _fill(self._copies, self._held, features)

    def construct(self, grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the gradients with the term's gradient added."""
        return self.each(ops.partial(pulled, self.rate), grads, self.weights, self.targets)


class DriftTerm(nn.Cell):
    """Corrects the weights for the silo's drift, by learning rate times (c - c_silo).

    Karimireddy et al., "SCAFFOLD", 2020, algorithm 1, line 10. It is outside the optimiser, whose
    momentum would multiply the correction.

    Args:
        weights: the weights that are corrected.

    Attributes:
        total: sum of the learning rates since `load`, (1,).
    """

    def __init__(self, weights: Sequence[Parameter]):
        super().__init__(auto_prefix=False)
        self.weights = ParameterTuple(weights)
        self.drifts = ParameterTuple(_beside(weights, "drift"))
        self.total = Parameter(Tensor(np.zeros(1, np.float32)), "rates", requires_grad=False)

    def load(self, drifts: Mapping[str, np.ndarray]) -> None:
        """Set c - c_silo of each weight, and reset the sum of learning rates."""
        _fill(self.drifts, self.weights, drifts)
        self.total.set_data(Tensor(np.zeros(1, np.float32)))

    def construct(self, rate: Tensor) -> Tensor:
        """Correct the weights, add the rate to the sum, and return the rate."""
        for number in range(len(self.drifts)):
            ops.assign_sub(self.weights[number], rate * self.drifts[number])
        ops.assign_add(self.total, rate)
        return rate


def _beside(weights: Sequence[Parameter], prefix: str) -> list[Parameter]:
    """Return zeros in the weights' shapes, as parameters that are not trained."""
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


Arrays = Mapping[str, np.ndarray]
# Prefix of the silo's control variates in its kept state, see `FedAvg.state`.
SILO_CONTROL = "c_silo."


class FedAvg:
    """FedAvg: a silo sends its weights and receives the servers' mean.

    Attributes:
        terms: the cells that a training step has to apply.
        declared: what the silo declares in place of its number of images; None: that number.
    """

    terms = NO_TERMS
    declared: int | None = None

    def joined(self, controls: Arrays) -> None:
        """Begin an iteration that the silo takes part in; `controls` came with the answer."""

    def upload(self, weights: Arrays, data_size: int) -> dict[str, np.ndarray]:
        """Return the upload for the trained `weights`; it is sent multiplied by `data_size`."""
        return dict(weights)

    def loaded(self, features: Arrays) -> None:
        """Note the global model that was loaded; the arrays are valid during the call only."""

    def ended(self, record: Round) -> None:
        """End the iteration of the last upload."""

    def state(self) -> dict[str, np.ndarray]:
        """Return what the silo keeps between iterations; 1-D arrays by name."""
        return {}

    def restore(self, arrays: Arrays) -> None:
        """Restore what `state` returned in an earlier process of this silo."""


class FedProx(FedAvg):
    """FedProx: FedAvg, with a term that pulls training back to the global model."""

    def __init__(self, weights: Sequence[Parameter], names: Sequence[str], rate: float):
        self._term = ProximalTerm(weights, names, rate)
        self.terms = Terms(gradient=self._term)

    def loaded(self, features: Arrays) -> None:
        """Keep the model that training is pulled back to."""
        self._term.load(features)


class FedNova(FedAvg):
    """FedNova: a silo sends the mean change per step, whatever its number of steps.

    Wang et al., "Tackling the objective inconsistency problem", 2020. The silo declares its number
    of steps. The servers add to their model the sum of the uploads times the sum of the steps,
    divided by the square of the number of silos: the mean number of steps times the mean change per
    step.

    Raises:
        UserError: an iteration has more steps than can be declared.
    """

    def __init__(self, names: Sequence[str], steps: int):
        if steps > LARGEST_DATA_SIZE:
            raise UserError(
                f"{FEDNOVA}: an iteration of {steps} steps, and the engine takes "
                f"{LARGEST_DATA_SIZE} at most; set sync_frequency or client_epoch_num lower"
            )
        self.declared = steps
        self._names = names
        self._global: dict[str, np.ndarray] = {}

    def upload(self, weights: Arrays, data_size: int) -> dict[str, np.ndarray]:
        """Return the change per step, divided by the factor that it will be multiplied by."""
        divisor = np.float32(data_size) ** 2
        return {
            name: (weights[name].reshape(-1) - self._global[name]) / divisor for name in self._names
        }

    def loaded(self, features: Arrays) -> None:
        """Keep the model from which changes are measured."""
        self._global = {name: features[name].copy() for name in self._names}


class Scaffold(FedAvg):
    """Scaffold: control variates, the silo's and a global one, correct the silo's drift.

    Karimireddy et al., "SCAFFOLD", 2020, algorithm 1 with option II: a silo's variate is its mean
    change per unit of learning rate. The weights are averaged as by FedAvg; the servers add the sum
    of the variates' changes, divided by total_client_num, to theirs.
    """

    def __init__(self, weights: Sequence[Parameter]):
        self._term = DriftTerm(weights)
        self.terms = Terms(weight=self._term)
        self._own = {w.name: np.zeros(w.size, np.float32) for w in weights}
        self._global: dict[str, np.ndarray] = {}
        self._told = False
        self._change: dict[str, np.ndarray] = {}

    def joined(self, controls: Arrays) -> None:
        """Load the servers' variates; a silo that only kept its place does not receive them."""
        if controls and {CONTROL + name for name in self._own} != set(controls):
            raise SyncError(
                f"the servers hold {len(controls)} control variates that are not those of this "
                "silo's weights; give both the same configuration, and the servers a model from "
                "tools/create_initial_checkpoint.py"
            )
        self._told = bool(controls)
        self._term.load(
            {name: controls.get(CONTROL + name, own) - own for name, own in self._own.items()}
        )

    def upload(self, weights: Arrays, data_size: int) -> dict[str, np.ndarray]:
        """Return the weights and the variates' changes, which the servers expect unmultiplied."""
        rates = self._term.total.asnumpy()[0]
        self._change = {name: np.zeros_like(own) for name, own in self._own.items()}
        if self._told and rates > 0:
            for drift, (name, own) in zip(self._term.drifts, self._own.items()):
                moved = self._global[name] - weights[name].reshape(-1)
                self._change[name] = moved / rates - (drift.asnumpy().reshape(-1) + own)
        size = np.float32(data_size)
        changes = {CONTROL + name: change / size for name, change in self._change.items()}
        return {**weights, **changes}

    def loaded(self, features: Arrays) -> None:
        """Keep the model that training starts from."""
        self._global = {name: features[name].copy() for name in self._own}

    def ended(self, record: Round) -> None:
        """Update the silo's variates if the servers have counted their change."""
        if record.result == "aggregated":
            for name, change in self._change.items():
                self._own[name] += change
        self._change = {}

    def state(self) -> dict[str, np.ndarray]:
        """Return the silo's variates."""
        return {SILO_CONTROL + name: own for name, own in self._own.items()}

    def restore(self, arrays: Arrays) -> None:
        """Restore the silo's variates."""
        self._own = {name: arrays[SILO_CONTROL + name].copy() for name in self._own}


def algorithm_of(
    aggregation: Aggregation, weights: Sequence[Parameter], names: Sequence[str], steps: int
) -> FedAvg:
    """Make the algorithm of a job.

    Args:
        weights: all trained weights, in the order of the training step.
        names: the federated ones among them.
        steps: number of steps in an iteration.
    """
    if aggregation.kind == FEDPROX:
        return FedProx(weights, names, aggregation.iid_rate)
    if aggregation.kind == FEDNOVA:
        return FedNova(names, steps)
    if aggregation.kind == SCAFFOLD:
        chosen = set(names)
        return Scaffold([weight for weight in weights if weight.name in chosen])
    return FedAvg()


# More than any consistency, so that the first round after a change sets the minimum.
NO_MINIMUM = 1.1

# Name prefixes in the state for a later process of the silo, see `AdaptiveFrequency.state`.
CHANGE, SIZE = "mean_change.", "mean_size."
KEPT = ("frequency", "_window", "_lowest", "_lowest_at", "_round")


class AdaptiveFrequency:
    """Decides the number of steps in an iteration, identically in every silo.

    Args:
        settings: see default_config.yaml.
        frequency: number of steps in the first iterations.
        names: the federated weights.

    Attributes:
        frequency: number of steps in the next iteration.
    """

    def __init__(self, settings: AdaptiveSettings, frequency: int, names: list[str]):
        self.frequency = frequency
        self._names = names
        self._alpha = np.float32(settings.ema_alpha)
        self._window = settings.observation_window_size
        self._ratio = settings.frequency_increase_ratio
        self._unchanged = settings.unchanged_round
        self._lowest = settings.min_consistent_rate
        self._lowest_at = settings.min_consistent_rate_at_round
        self._round = 0
        self._global: dict[str, np.ndarray] = {}
        self._forget()

    def _forget(self) -> None:
        """Reset the moving averages."""
        self._change: dict[str, np.ndarray] = {}
        self._size: dict[str, np.ndarray] = {}

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Return the moving averages, 1-D arrays by name, and the numbers for the decision."""
        arrays = {CHANGE + name: array for name, array in self._change.items()}
        arrays.update({SIZE + name: array for name, array in self._size.items()})
        return arrays, {key: getattr(self, key) for key in KEPT}

    def restore(self, arrays: Arrays, numbers: Mapping[str, float]) -> None:
        """Restore what `state` returned in an earlier process of this silo."""
        for key in KEPT:
            setattr(self, key, numbers[key])
        self._change = {n: arrays[CHANGE + n].copy() for n in self._names if CHANGE + n in arrays}
        self._size = {n: arrays[SIZE + n].copy() for n in self._names if SIZE + n in arrays}

    def upload(self, weights: Arrays) -> dict[str, np.ndarray]:
        """Return what is sent with `weights`: the change of each since the global model."""
        return {
            ABSOLUTE + name: np.abs(weights[name].reshape(-1) - self._global[name])
            for name in self._names
        }

    def loaded(self, features: Arrays) -> None:
        """Note a global model, and from its change how consistent its round was.

        It does not matter whether this silo took part in the round, so that all silos decide the
        same. An unchanged model comes from a failed round, which gives no information.
        """
        if self._global and any((features[n] != self._global[n]).any() for n in self._names):
            self._decide(self._consistency(features))
        self._global = {name: features[name].copy() for name in self._names}

    def _consistency(self, features: Arrays) -> float:
        """Return the ratio of this round's smoothed change to its smoothed size, 0 to 1."""
        total, count = 0.0, 0
        for name in self._names:
            change = features[name] - self._global[name]
            self._change[name] = self._smooth(self._change.get(name), change)
            self._size[name] = self._smooth(self._size.get(name), features[ABSOLUTE + name])
            moved = self._size[name] > 0
            ratio = np.abs(self._change[name][moved]) / self._size[name][moved]
            total += float(ratio.sum(dtype=np.float64))
            count += change.size
        return total / count

    def _smooth(self, before: np.ndarray | None, now: np.ndarray) -> np.ndarray:
        now = now * (1 - self._alpha)
        return now if before is None else before * self._alpha + now

    def _decide(self, consistency: float) -> None:
        waited = self._round - self._lowest_at
        if consistency < self._lowest:
            self._lowest, self._lowest_at = consistency, self._round
        elif waited > self._window and self.frequency > 1 and self._round > self._unchanged:
            self.frequency = -(-self.frequency // self._ratio)
            self._lowest, self._lowest_at = NO_MINIMUM, self._round
            self._window *= self._ratio
            self._forget()
        self._round += 1


def adaptive_of(
    aggregation: Aggregation, frequency: int, names: list[str]
) -> AdaptiveFrequency | None:
    """Make the adaptive frequency of a job; None where the number of steps is fixed."""
    if aggregation.adaptive is None:
        return None
    return AdaptiveFrequency(aggregation.adaptive, frequency, names)
