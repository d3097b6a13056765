"""The aggregation algorithms on the silo's side: what is sent, what is kept, what a step adds.

One class each. `SiloManager` calls them in this order: `loaded` with a global model, `joined`,
training, `upload`, `loaded`, `ended`. What the servers do with an upload is in
docs/aggregation.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from mindspore import Parameter

from src.errors import UserError
from src.federated.aggregation import CONTROL, FEDNOVA, FEDPROX, SCAFFOLD, Aggregation
from src.federated.rounds import LARGEST_DATA_SIZE, Round, SyncError
from src.federated.terms import NO_TERMS, DriftTerm, ProximalTerm, Terms

Arrays = Mapping[str, np.ndarray]
# A control variate of the silo among what it keeps, see `Averaging.state`.
SILO_CONTROL = "c_silo."


class Averaging:
    """FedAvg: the weights are sent, and the servers' mean of them comes back.

    Attributes:
        terms: what a training step has to add.
        declared: what the silo declares in place of its images; None: these.
        adds: the servers add what is sent to their model, instead of averaging models.
        needs_controls: control variates come with the permission to join.
    """

    terms = NO_TERMS
    declared: int | None = None
    adds = False
    needs_controls = False

    def joined(self, controls: Arrays) -> None:
        """The silo takes part in an iteration; `controls` came with the permission."""

    def upload(self, weights: Arrays, data_size: int) -> dict[str, np.ndarray]:
        """What is sent of the trained `weights`; all of it leaves multiplied by `data_size`."""
        return dict(weights)

    def loaded(self, features: Arrays) -> None:
        """The network has a global model; the arrays are valid during the call."""

    def ended(self, record: Round) -> None:
        """The iteration of the last upload is over."""

    def state(self) -> dict[str, np.ndarray]:
        """What the silo keeps from one iteration to the next; 1-D arrays by name."""
        return {}

    def restore(self, arrays: Arrays) -> None:
        """Take what `state` gave in an earlier process of this silo."""


class Proximal(Averaging):
    """FedProx: as FedAvg, while training is pulled back to the global model."""

    def __init__(self, weights: Sequence[Parameter], names: Sequence[str], rate: float):
        self._term = ProximalTerm(weights, names, rate)
        self.terms = Terms(gradient=self._term)

    def loaded(self, features: Arrays) -> None:
        """Keep the model to pull back to."""
        self._term.load(features)


class NormalisedAveraging(Averaging):
    """FedNova: the mean change of a step is sent, whatever the number of steps.

    Wang et al., "Tackling the objective inconsistency problem", 2020. The silo declares its steps.
    The servers add to their model the sum of the uploads times the sum of the steps, divided by the
    square of the number of silos: the mean number of steps times the mean change of one.

    Raises:
        UserError: more steps in an iteration than can be declared.
    """

    adds = True

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
        """The change of a step; once more divided by what it leaves multiplied by."""
        divisor = np.float32(data_size) ** 2
        return {
            name: (weights[name].reshape(-1) - self._global[name]) / divisor for name in self._names
        }

    def loaded(self, features: Arrays) -> None:
        """Keep the model that changes are counted from."""
        self._global = {name: features[name].copy() for name in self._names}


class Controlled(Averaging):
    """Scaffold: control variates, one of the silo and one of all, take the silo's drift out.

    Karimireddy et al., "SCAFFOLD", 2020, algorithm 1 with option II: a silo's variate is its mean
    change for each unit of learning rate. The weights are averaged as by FedAvg; the servers add
    the sum of the variates' changes, divided by total_client_num, to theirs.
    """

    needs_controls = True

    def __init__(self, weights: Sequence[Parameter]):
        self._term = DriftTerm(weights)
        self.terms = Terms(weight=self._term)
        self._own = {w.name: np.zeros(w.size, np.float32) for w in weights}
        self._global: dict[str, np.ndarray] = {}
        self._told = False
        self._change: dict[str, np.ndarray] = {}

    def joined(self, controls: Arrays) -> None:
        """Take the servers' variates; a silo that only kept its place is not told them."""
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
        """The weights, and the changes of the variates, which the servers expect unmultiplied."""
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
        """The silo's variates change where the servers have counted their change."""
        if record.result == "aggregated":
            for name, change in self._change.items():
                self._own[name] += change
        self._change = {}

    def state(self) -> dict[str, np.ndarray]:
        """The silo's variates."""
        return {SILO_CONTROL + name: own for name, own in self._own.items()}

    def restore(self, arrays: Arrays) -> None:
        """Take the silo's variates."""
        self._own = {name: arrays[SILO_CONTROL + name].copy() for name in self._own}


def algorithm_of(
    aggregation: Aggregation, weights: Sequence[Parameter], names: Sequence[str], steps: int
) -> Averaging:
    """The algorithm of a job.

    Args:
        weights: all that is trained, in the order of the training step.
        names: those of them that travel.
        steps: of an iteration.
    """
    if aggregation.kind == FEDPROX:
        return Proximal(weights, names, aggregation.iid_rate)
    if aggregation.kind == FEDNOVA:
        return NormalisedAveraging(names, steps)
    if aggregation.kind == SCAFFOLD:
        chosen = set(names)
        return Controlled([weight for weight in weights if weight.name in chosen])
    return Averaging()
