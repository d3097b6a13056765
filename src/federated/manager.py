"""The engine's training callback with another way for weights to leave and enter the process.

The base class, `mindspore_federated.FederatedLearningManager`, loads the federation's file into
the engine and holds the counters that say which step ends an iteration. Its own client turns every
weight into a Python list, waits without end and takes a refusal for a success; `SiloManager` does
that part with `Silo`. Its aggregation algorithms keep copies among the network's own parameters,
where they would be trained or saved, and read a learning rate only by moving its schedule on;
`algorithms` and `adaptive` are in their place.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

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
from src.federated.rounds import Deadlines, NotFiniteError, Round
from src.federated.transport import Client
from src.printing import print


class _NoEngineClient:
    """Stands in for the engine's binding while the base class is set up."""

    @staticmethod
    def init_federated_worker(initial_model: dict) -> None:
        """Do not start the engine's client, which would keep a copy of the model."""


@contextlib.contextmanager
def without_engine_client() -> Iterator[None]:
    """Within it, a manager that is made starts no client of the engine."""
    binding = _fl_manager.Federated_
    _fl_manager.Federated_ = _NoEngineClient
    try:
        yield
    finally:
        _fl_manager.Federated_ = binding


# Names in a silo's state, see `SiloManager.state`.
LOCAL = "local."
NO_CONTROLS = (
    "WARNING: the servers' control variates for iteration {} went to an earlier process of this "
    "silo or with a lost answer; it trains without the drift correction, and its variate stays"
)


class SiloManager(FederatedLearningManager):
    """A silo's synchronisation as a callback of `mindspore.Model.train`.

        manager = SiloManager("federation.yaml", network, sync_frequency=100, ...)
        manager.join()
        while not manager.finished:
            ...  # the learning rate that belongs to manager.iteration
            model.train(1, dataset, callbacks=[manager])
            manager.join()

    `join` before training loads the global model, so that a late silo has the current weights and
    knows the iteration; a training that begins without it joins by itself. A call of `train`
    holds a whole number of iterations and stops early when the job is finished.

    Args:
        yaml_config: path of the federation's YAML file.
        model: its float32 `trainable_params()` are what travels, but for `local`.
        sync_frequency: steps in an iteration; epochs where the data set sinks.
        addresses: "host:port" of the servers, this silo's own first.
        data_size: the silo's images, its weight in the mean.
        fl_name: the job's name.
        silo_id: the silo's identity; the same after a restart.
        silo_number: named in log lines.
        iterations, threshold: of the job; see `Silo`.
        data_size_unit: images that count as one, where a silo has more than 65,535.
        aspects: what must agree between silos without travelling; see `fingerprint`.
        tls: context that verifies the servers, or None for plain HTTP.
        aggregation: the algorithm; a training step has to apply `terms`.
        steps: of an iteration, where sync_frequency counts epochs.
        local: names of the parameters that stay in the silo.
        privacy: puts noise on what is sent; None sends the weights as they are.
        ranks: the processes that this silo consists of; None where it is this one.
        all_needed: see `Silo`.
        pre_trained: the checkpoint that the model's weights are from; "" where from none.
        prefix: what the servers' paths begin with; see `Client`.
        max_change: see `Silo`.

    Raises:
        UserError: at the first join, where this silo and the servers do not fit together.
        SyncError: from `join` or from within `train`; see `rounds`.
    """

    # Of the base class, whose package has no types.
    _next_begin_sync_iter: int
    _next_end_sync_iter: int
    _sync_frequency: int

    _entered = 0  # the iteration that the algorithm was told of last

    def __init__(
        self,
        yaml_config: str,
        model: nn.Cell,
        sync_frequency: int,
        addresses: Sequence[str],
        data_size: int,
        fl_name: str,
        silo_id: str,
        silo_number: int,
        iterations: int,
        threshold: int,
        data_size_unit: int = 1,
        aspects: Mapping[str, object] | None = None,
        deadlines: Deadlines | None = None,
        tls: ssl.SSLContext | None = None,
        log: Callable[[str], None] = print,
        on_phase: Callable[[str, int], None] = lambda phase, iteration: None,
        rounds_path: Path | None = None,
        aggregation: Aggregation | None = None,
        steps: int | None = None,
        local: Collection[str] = (),
        privacy: Privacy | None = None,
        ranks: Ranks | None = None,
        all_needed: bool = False,
        pre_trained: str = "",
        prefix: str = "",
        max_change: float = 0.0,
    ):
        with without_engine_client(), checked_settings():
            # It copies every parameter of the cell that it is given: one that has none.
            super().__init__(str(yaml_config), nn.Cell(), sync_frequency, addresses[0], data_size)
        self._model, self._log = model, log
        self._local = frozenset(local)
        self._privacy = privacy
        names = [param.name for param in self._travelling()]
        aggregation, steps = aggregation or Aggregation(), steps or sync_frequency
        self._algorithm = algorithm_of(aggregation, model.trainable_params(), names, steps)
        self._adaptive = adaptive_of(aggregation, sync_frequency, names)
        self._silo = silo_of(
            ranks,
            Client(addresses, fl_name, silo_id, tls, (deadlines or Deadlines()).wait, prefix),
            self._load,
            self._sizes(),
            data_size,
            iterations,
            threshold,
            number=silo_number,
            data_size_unit=data_size_unit,
            aspects=aspects,
            deadlines=deadlines,
            log=log,
            on_phase=on_phase,
            rounds_path=rounds_path,
            adds=self._algorithm.adds,
            declared=self._algorithm.declared,
            all_needed=all_needed,
            start=self._start(pre_trained) if pre_trained else None,
            max_change=max_change,
        )

    def __del__(self) -> None:
        """Nothing: the base class stops an engine client here that was never started."""

    @property
    def iteration(self) -> int:
        """The servers' current iteration, from 1; 0 before the first join."""
        return self._silo.iteration

    @property
    def frequency(self) -> int:
        """Steps of an iteration from here on; epochs where the data set sinks."""
        return self._sync_frequency

    @property
    def finished(self) -> bool:
        """Whether the job has no iteration left."""
        return self._silo.finished

    @property
    def rounds(self) -> list[Round]:
        """What the iterations of this process took."""
        return self._silo.rounds

    @property
    def terms(self) -> Terms:
        """What a training step adds for the job's algorithm."""
        return self._algorithm.terms

    def join(self) -> int:
        """Join the current iteration with its weights, unless that is done; returns `iteration`."""
        self._silo.join()
        if self._silo.joined and self._entered != self.iteration:
            self._entered = self.iteration
            if self._algorithm.needs_controls and not self._silo.controls:
                self._log(NO_CONTROLS.format(self.iteration))
            self._algorithm.joined(self._silo.controls)
            self._silo.controls = {}  # as large as the model
        return self.iteration

    def close(self) -> None:
        """Close the connection to the servers, which take it as the sign that this silo is done."""
        self._silo.client.close()

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """What the servers do not have: 1-D arrays by name, and an adaptive frequency's numbers."""
        arrays = {LOCAL + p.name: p.asnumpy().reshape(-1) for p in self._staying()}
        arrays.update(self._algorithm.state())
        if self._adaptive is None:
            return arrays, {}
        history, numbers = self._adaptive.state()
        return {**arrays, **history}, numbers

    def restore(self, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, float]) -> None:
        """Take what `state` gave in an earlier process of this silo; before the first `join`."""
        for param in self._staying():
            param.set_data(Tensor(arrays[LOCAL + param.name].reshape(param.shape)))
        self._algorithm.restore(arrays)
        if self._adaptive is not None:
            self._adaptive.restore(arrays, numbers)
            self._sync_frequency = self._next_end_sync_iter = self._adaptive.frequency

    def on_train_step_begin(self, run_context: Any) -> None:
        """Count the step; the first of an iteration joins it."""
        self._global_step += 1
        if self._global_step != self._next_begin_sync_iter or self.finished:
            return
        self.join()

    def on_train_step_end(self, run_context: Any) -> None:
        """Check the loss; the last step of an iteration synchronises."""
        check_loss(run_context.original_args().net_outputs, self._global_step)
        if self.finished:
            # The job ended without this silo, which learned it only when this step had begun.
            self._silo.reload()
        elif self._global_step == self._next_end_sync_iter:
            self._synchronise()
        if self.finished:
            run_context.request_stop()

    def _synchronise(self) -> None:
        """End the iteration; the next one begins with the next step."""
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
        """Name -> number of values of what the servers' model consists of."""
        sizes = {param.name: param.size for param in self._travelling()}
        absolute = {ABSOLUTE + name: size for name, size in sizes.items()}
        return {**sizes, **absolute} if self._adaptive else sizes

    def _start(self, pre_trained: str) -> Start:
        """Return a copy of what travels, as it is now; it goes with the first model of silos."""
        weights = {p.name: p.asnumpy().reshape(-1).copy() for p in self._travelling()}
        return Start(weights, pre_trained)

    def _staying(self) -> list:
        """The parameters that are trained and stay in the silo."""
        return [param for param in self._model.trainable_params() if param.name in self._local]

    def _travelling(self) -> list:
        """The parameters that the servers hold."""
        return [
            param
            for param in self._model.trainable_params()
            if param.dtype == mstype.float32 and param.name not in self._local
        ]

    def _model_params_to_weights_dict(
        self, weights: dict[str, np.ndarray], weight_infos: dict[str, tuple]
    ) -> None:
        """The base class's hook, with arrays for its lists."""
        for param in self._travelling():
            array = param.asnumpy()
            weights[param.name] = array
            weight_infos[param.name] = (array.shape, array.dtype)

    def _update_model(self, weights: dict[str, np.ndarray], weight_infos: dict[str, tuple]) -> None:
        """The base class's hook: everything between the last local step and the global model."""
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
        """Set the model's parameters, and what the algorithm keeps of the global ones."""
        for param in self._travelling():
            param.set_data(Tensor(features[param.name].reshape(param.shape)))
        self._algorithm.loaded(features)
        if self._privacy is not None:
            self._privacy.remember(features)
        if self._adaptive:
            self._adaptive.loaded(features)


def check_loss(outputs: Any, step: int) -> None:
    """Raise NotFiniteError where a value among a training step's outputs is NaN or infinite."""
    values = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    for number, value in enumerate(values):
        if isinstance(value, Tensor) and not np.isfinite(value.asnumpy()).all():
            raise NotFiniteError(
                f"loss: output {number} of training step {step} is {value.asnumpy()}; "
                "nothing was sent; a smaller learning rate or grad_clip may help"
            )
