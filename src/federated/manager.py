"""The engine's training callback, with its exchange of weights replaced.

The base class, `mindspore_federated.FederatedLearningManager`, loads the federation's file into the
engine and holds the counters that say which step ends an iteration. Its own client turns every
weight into a Python list, waits forever and mistakes a refusal for success; `SiloManager` uses
`Silo` instead. The base class's aggregation algorithms keep copies among the network's own
parameters, where they would be trained or saved, and advance the learning-rate schedule by reading
it; `algorithms` replaces them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from mindspore import Tensor, nn
from mindspore import dtype as mstype
from mindspore_federated import FederatedLearningManager
from mindspore_federated.trainer import _fl_manager

from src.federated.aggregation import ABSOLUTE, Aggregation
from src.federated.algorithms import Terms, adaptive_of, algorithm_of
from src.federated.engine_settings import checked_settings
from src.federated.model_check import Start
from src.federated.privacy import Privacy
from src.federated.rank_silo import silo_of
from src.federated.ranks import Ranks
from src.federated.rounds import NotFiniteError, Round
from src.federated.silo import SiloSettings
from src.federated.transport import Client


class _NoEngineClient:
    """Replaces the engine's binding while the base class is set up."""

    @staticmethod
    def init_federated_worker(initial_model: dict) -> None:
        """Do not start the engine's client, which would keep a copy of the model."""


@contextlib.contextmanager
def without_engine_client() -> Iterator[None]:
    """Create managers within the block that start no engine client."""
    binding = _fl_manager.Federated_
    _fl_manager.Federated_ = _NoEngineClient
    try:
        yield
    finally:
        _fl_manager.Federated_ = binding


# Prefix of names in a silo's state, see `SiloManager.state`.
LOCAL = "local."
NO_CONTROLS = (
    "WARNING: the servers' control variates for iteration {} went to an earlier process of this "
    "silo or with a lost answer; it trains without the drift correction, and its variate stays"
)


class SiloManager(FederatedLearningManager):
    """A silo's synchronisation as a callback of `mindspore.Model.train`.

        manager = SiloManager("federation.yaml", network, 100, client, settings)
        manager.join()
        while not manager.finished:
            ...  # the learning rate that belongs to manager.iteration
            model.train(1, dataset, callbacks=[manager])
            manager.join()

    `join` before training loads the global model, so that a late silo has the current weights and
    knows the iteration. Without that call, the first training step joins. A call of `train` covers
    a whole number of iterations and stops early when the job is finished.

    Args:
        yaml_config: path of the federation's YAML file.
        model: its float32 `trainable_params()` are federated, except those in `local`.
        sync_frequency: steps in an iteration; epochs with data sinking.
        client: the connection, with the servers' addresses and this silo's identity.
        settings: what the silo brings into the job.
        aggregation: the algorithm; a training step has to apply `terms`.
        steps: number of steps in an iteration, where sync_frequency counts epochs.
        local: names of the local parameters, which do not leave the silo.
        privacy: adds noise to uploads; None sends the weights as they are.
        ranks: the silo's processes; None if it consists of this one only.
        pre_trained: the checkpoint with the model's initial weights; "" for none.

    Raises:
        UserError: at the first join, if this silo and the servers do not fit together.
        SyncError: from `join` or from within `train`; see `rounds`.
    """

    # Declared here because the base class's package has no types.
    _next_begin_sync_iter: int
    _next_end_sync_iter: int
    _global_step: int
    _sync_frequency: int

    _entered = 0  # the last iteration that the algorithm was told of

    def __init__(
        self,
        yaml_config: str,
        model: nn.Cell,
        sync_frequency: int,
        client: Client,
        settings: SiloSettings,
        aggregation: Aggregation | None = None,
        steps: int | None = None,
        local: Collection[str] = (),
        privacy: Privacy | None = None,
        ranks: Ranks | None = None,
        pre_trained: str = "",
    ):
        address = client.addresses[0]
        with without_engine_client(), checked_settings():
            # The base class copies every parameter of its cell, so it gets a cell without any.
            super().__init__(str(yaml_config), nn.Cell(), sync_frequency, address, settings.images)
        self._model, self._log = model, settings.log
        self._iterations = settings.iterations
        self._local = frozenset(local)
        self._privacy = privacy
        names = [param.name for param in self._federated()]
        aggregation, steps = aggregation or Aggregation(), steps or sync_frequency
        self._facts = aggregation.facts
        self._algorithm = algorithm_of(aggregation, model.trainable_params(), names, steps)
        self._adaptive = adaptive_of(aggregation, sync_frequency, names)
        self._silo = silo_of(
            ranks,
            client,
            self._load,
            self._sizes(),
            settings,
            adds=self._facts.adds_uploads,
            declared=self._algorithm.declared,
            start=self._start(pre_trained) if pre_trained else None,
        )

    def __del__(self) -> None:
        """Do nothing: the base class would stop an engine client that was never started."""

    @property
    def iteration(self) -> int:
        """Return the servers' current iteration, from 1; 0 before the first join."""
        return self._silo.iteration

    @property
    def frequency(self) -> int:
        """Return the steps of an iteration from now on; epochs with data sinking."""
        return self._sync_frequency

    @property
    def steps_left(self) -> int:
        """Return the steps to the end of the job; epochs with data sinking."""
        later = max(0, self._iterations - self.iteration) * self._sync_frequency
        now = 0 if self.finished else self._next_end_sync_iter - self._global_step
        return later + now

    @property
    def finished(self) -> bool:
        """Return whether the job has no iteration left."""
        return self._silo.finished

    @property
    def rounds(self) -> list[Round]:
        """Return the records of this process's iterations."""
        return self._silo.rounds

    @property
    def terms(self) -> Terms:
        """Return what a training step adds for the job's algorithm."""
        return self._algorithm.terms

    def join(self) -> int:
        """Join the current iteration and load its weights, unless done; return `iteration`."""
        self._silo.join()
        if self._silo.joined and self._entered != self.iteration:
            self._entered = self.iteration
            if self._facts.has_controls and not self._silo.controls:
                self._log(NO_CONTROLS.format(self.iteration))
            self._algorithm.joined(self._silo.controls)
            self._silo.controls = {}  # as large as the model
        return self.iteration

    def close(self) -> None:
        """Close the connection, which tells the servers that this silo is done."""
        self._silo.client.close()

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Return what servers lack: 1-D arrays by name, and an adaptive frequency's numbers."""
        arrays = {LOCAL + p.name: p.asnumpy().reshape(-1) for p in self._local_only()}
        arrays.update(self._algorithm.state())
        if self._adaptive is None:
            return arrays, {}
        history, numbers = self._adaptive.state()
        return {**arrays, **history}, numbers

    def restore(self, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, float]) -> None:
        """Restore what `state` returned in an earlier process; call it before the first `join`."""
        for param in self._local_only():
            param.set_data(Tensor(arrays[LOCAL + param.name].reshape(param.shape)))
        self._algorithm.restore(arrays)
        if self._adaptive is not None:
            self._adaptive.restore(arrays, numbers)
            self._sync_frequency = self._next_end_sync_iter = self._adaptive.frequency

    def on_train_step_begin(self, run_context: Any) -> None:
        """Count the step; join the iteration at its first step."""
        self._global_step += 1
        if self._global_step != self._next_begin_sync_iter or self.finished:
            return
        self.join()

    def on_train_step_end(self, run_context: Any) -> None:
        """Check the loss; synchronise after the last step of an iteration."""
        check_loss(run_context.original_args().net_outputs, self._global_step)
        if self.finished:
            # The job ended without this silo, which learned this only after the step had begun.
            self._silo.reload()
        elif self._global_step == self._next_end_sync_iter:
            self._synchronise()
        if self.finished:
            run_context.request_stop()

    def _synchronise(self) -> None:
        """End the iteration; the next step begins the next one."""
        weights: dict[str, np.ndarray] = {}
        weight_infos: dict[str, tuple] = {}
        self._model_params_to_weights_dict(weights, weight_infos)
        self._update_model(weights, weight_infos)
        if self._adaptive and self._adaptive.frequency != self._sync_frequency:
            before, self._sync_frequency = self._sync_frequency, self._adaptive.frequency
            self._log(
                f"sync_type adaptive: synchronising every {self._sync_frequency} instead of "
                f"{before} from here on"
            )
        self._next_end_sync_iter = self._global_step + self._sync_frequency
        self._next_begin_sync_iter = self._global_step + 1

    def _sizes(self) -> dict[str, int]:
        """Return name -> number of values for each part of the servers' model."""
        sizes = {param.name: param.size for param in self._federated()}
        absolute = {ABSOLUTE + name: size for name, size in sizes.items()}
        return {**sizes, **absolute} if self._adaptive else sizes

    def _start(self, pre_trained: str) -> Start:
        """Return a copy of the current federated weights; dropped at the first aggregated model."""
        weights = {p.name: p.asnumpy().reshape(-1).copy() for p in self._federated()}
        return Start(weights, pre_trained)

    def _local_only(self) -> list:
        """Return the local parameters: trained, and never sent."""
        return [param for param in self._model.trainable_params() if param.name in self._local]

    def _federated(self) -> list:
        """Return the federated parameters, which the servers hold."""
        return [
            param
            for param in self._model.trainable_params()
            if param.dtype == mstype.float32 and param.name not in self._local
        ]

    def _model_params_to_weights_dict(
        self, weights: dict[str, np.ndarray], weight_infos: dict[str, tuple]
    ) -> None:
        """Override the base class's hook, with arrays in place of its lists."""
        for param in self._federated():
            array = param.asnumpy()
            weights[param.name] = array
            weight_infos[param.name] = (array.shape, array.dtype)

    def _update_model(self, weights: dict[str, np.ndarray], weight_infos: dict[str, tuple]) -> None:
        """Override the base class's hook: do all that follows the last local step."""
        features = self._algorithm.upload(weights, self._silo.data_size)
        if self._adaptive:
            features.update(self._adaptive.upload(weights))
        epsilon = None
        if self._privacy is not None:
            features = self._privacy.protect(features, self._global_step, self.iteration)
            epsilon = self._privacy.epsilon
        record = self._silo.exchange(features, self._global_step, epsilon)
        self._algorithm.ended(record)

    def _load(self, features: dict[str, np.ndarray]) -> None:
        """Set the model's parameters, and what the algorithm keeps of the global model."""
        for param in self._federated():
            param.set_data(Tensor(features[param.name].reshape(param.shape)))
        self._algorithm.loaded(features)
        if self._privacy is not None:
            self._privacy.remember(features)
        if self._adaptive:
            self._adaptive.loaded(features)


def check_loss(outputs: Any, step: int) -> None:
    """Raise NotFiniteError if a value among a training step's outputs is NaN or infinite."""
    values = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    for number, value in enumerate(values):
        if isinstance(value, Tensor) and not np.isfinite(value.asnumpy()).all():
            raise NotFiniteError(
                f"loss: output {number} of training step {step} is {value.asnumpy()}; "
                "nothing was sent; a smaller learning rate or grad_clip may help"
            )
