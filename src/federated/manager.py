"""The engine's training callback with another way for weights to leave and enter the process.

The base class, `mindspore_federated.FederatedLearningManager`, counts steps, decides which step
ends an iteration and implements the aggregation algorithms. Its own client turns every weight into
a Python list, waits without end and takes a refusal for a success; `SiloManager` does that part
with `Silo`.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np
from mindspore import Tensor, nn
from mindspore import dtype as mstype
from mindspore_federated import FederatedLearningManager
from mindspore_federated.common import _fl_context
from mindspore_federated.trainer import _fl_manager

from src.federated.rounds import Deadlines, NotFiniteError, Round
from src.federated.silo import Silo
from src.federated.transport import Client


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
        model: its float32 `trainable_params()` are what travels.
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
        **options: of the base class (sync_type ...).

    Raises:
        UserError: at the first join, where this silo and the servers do not fit together.
        SyncError: from `join` or from within `train`; see `rounds`.
    """

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
        **options: Any,
    ):
        with _without_engine_client():
            super().__init__(
                str(yaml_config), model, sync_frequency, addresses[0], data_size, **options
            )
        self._silo = Silo(
            Client(addresses, fl_name, silo_id, tls),
            self._load,
            {param.name: param.size for param in self._travelling()},
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
        )

    def __del__(self):
        """Nothing: the base class stops an engine client here that was never started."""

    @property
    def iteration(self) -> int:
        """The servers' current iteration, from 1; 0 before the first join."""
        return self._silo.iteration

    @property
    def finished(self) -> bool:
        """Whether the job has no iteration left."""
        return self._silo.finished

    @property
    def rounds(self) -> list[Round]:
        """What the iterations of this process took."""
        return self._silo.rounds

    def join(self) -> int:
        """Join the current iteration with its weights, unless that is done; returns `iteration`."""
        self._silo.join()
        return self.iteration

    def close(self) -> None:
        """Close the connection to the servers, which take it as the sign that this silo is done."""
        self._silo.client.close()

    def on_train_step_begin(self, run_context) -> None:
        """Count the step; the first of an iteration joins it."""
        self._global_step += 1
        if self._global_step != self._next_begin_sync_iter or self.finished:
            return
        if self._is_fednova():
            self._silo.data_size = self._steps_of_iteration(run_context.original_args())
        self.join()
        if self._is_scaffold() and self._global_step != 1:
            self._scaffold_set_global_control_params(self._silo.controls)

    def on_train_step_end(self, run_context) -> None:
        """Check the loss; the last step of an iteration synchronises."""
        check_loss(run_context.original_args().net_outputs, self._global_step)
        if self.finished:
            # The job ended without this silo, which learned it only when this step had begun.
            self._silo.reload()
        else:
            super().on_train_step_end(run_context)
        if self.finished:
            run_context.request_stop()

    def _steps_of_iteration(self, arguments) -> int:
        sinks = arguments.dataset_sink_mode
        return self._sync_frequency * (arguments.batch_num if sinks else 1)

    def _travelling(self) -> list:
        """The parameters that the servers hold."""
        return [
            param
            for param in self._model.trainable_params()
            if self._global_prefix not in param.name and param.dtype == mstype.float32
        ]

    def _model_params_to_weights_dict(self, weights, weight_infos) -> None:
        """The base class's hook, with arrays for its lists."""
        for param in self._travelling():
            array = param.asnumpy()
            weights[param.name] = array
            weight_infos[param.name] = (array.shape, array.dtype)

    def _update_model(self, weights, weight_infos) -> None:
        """The base class's hook: everything between the last local step and the global model."""
        self._silo.exchange(weights, self._global_step)

    def _load(self, features: dict[str, np.ndarray]) -> None:
        """Set the model's parameters, and the algorithms' copy of the global ones."""
        keeps_global = self._aggregation_type in (_fl_context.FEDPROX, _fl_context.FEDNOVA)
        copies = {param.name: param for param in self._global_weights} if keeps_global else {}
        for param in self._travelling():
            array = features[param.name].reshape(param.shape)
            param.set_data(Tensor(array))
            if keeps_global:
                copies[f"{self._global_prefix}.{param.name}"].set_data(Tensor(array))


def check_loss(outputs: Any, step: int) -> None:
    """Raise NotFiniteError where a value among a training step's outputs is NaN or infinite."""
    values = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    for number, value in enumerate(values):
        if isinstance(value, Tensor) and not np.isfinite(value.asnumpy()).all():
            raise NotFiniteError(
                f"loss: output {number} of training step {step} is {value.asnumpy()}; "
                "nothing was sent; a smaller learning rate or grad_clip may help"
            )


class _NoEngineClient:
    """Stands in for the engine's binding while the base class is set up."""

    @staticmethod
    def init_federated_worker(initial_model: dict) -> None:
        """Do not start the engine's client, which would keep a copy of the model."""


@contextlib.contextmanager
def _without_engine_client() -> Iterator[None]:
    binding = _fl_manager.Federated_
    _fl_manager.Federated_ = _NoEngineClient
    try:
        yield
    finally:
        _fl_manager.Federated_ = binding
