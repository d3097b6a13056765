"""Training that is broken off and gone on with equals training in one go, to the last bit."""

from __future__ import annotations

import threading
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from engine import Engine
from mindspore import nn
from test_manager import ASPECTS, DEADLINES, STEPS, dataset, manager_of, values

from src.federated.fingerprint import FEATURE_NAME, fingerprint
from src.federated.manager import SiloManager
from src.federated.resume import StateKeeper, set_momentum
from src.federated.resume_state import load_state
from src.federated.silo import Silo, SiloSettings
from src.federated.transport import Client

ITERATIONS = 4
TERMS = {"fl_name": "Tiny"}


class KilledError(Exception):
    """Ends a training where a kill would."""


class Losses(ms.Callback):
    """Keeps each step's loss; ends the training after a number of steps."""

    def __init__(self, last: int = 1000):
        super().__init__()
        self.losses, self._last = [], last

    def on_train_step_end(self, run_context):
        self.losses.append(run_context.original_args().net_outputs.asnumpy().item())
        if len(self.losses) == self._last:
            raise KilledError


class Keep(ms.Callback):
    """Writes the silo's state after each round, as a worker does."""

    def __init__(self, manager: SiloManager, keeper: StateKeeper):
        super().__init__()
        self._manager, self._keeper, self._kept = manager, keeper, 0

    def on_train_step_end(self, run_context):
        if len(self._manager.rounds) > self._kept:
            self._kept = len(self._manager.rounds)
            self._keeper.save()


def silo(engine: Engine, state_path: Path, local: tuple[str, ...], last: int = 1000):
    """One process of the silo: takes up its state where there is one; its losses and weights."""
    ms.set_seed(1)
    network = nn.Dense(3, 2)
    optimizer = nn.SGD(network.trainable_params(), 0.05, momentum=0.9)
    model = ms.Model(network, nn.MSELoss(), optimizer)
    manager = manager_of(engine, network, iterations=ITERATIONS, local=local)
    state = load_state(state_path, TERMS, print)
    if state is not None:
        manager.restore(state.arrays, state.numbers)
        set_momentum(optimizer, state.arrays)
    manager.join()
    keeper = StateKeeper(state_path, TERMS, manager, optimizer, print)
    losses = Losses(last)
    callbacks = [losses, manager, Keep(manager, keeper)]
    try:
        model.train(ITERATIONS, dataset(), callbacks=callbacks, dataset_sink_mode=False)
    except KilledError:
        manager.close()
    return losses.losses, values(network)


def other_silo(engine: Engine, sizes: dict[str, int]) -> threading.Thread:
    """A silo that sends half of what it got, until the job is finished."""
    model: dict[str, np.ndarray] = {}
    client = Client(engine.addresses, engine.fl_name, "other")
    settings = SiloSettings(10, ITERATIONS, 2, aspects=ASPECTS, deadlines=DEADLINES)
    one = Silo(client, model.update, sizes, settings)

    def run() -> None:
        one.join()
        while not one.finished:
            one.exchange({name: value / 2 for name, value in model.items()})
            one.join()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("local", [pytest.param((), marks=pytest.mark.slow), ("bias",)])
def test_a_training_broken_off_in_the_third_iteration_equals_one_in_one_go(tmp_path, local):
    ms.set_seed(1)
    start = {n: v for n, v in values(nn.Dense(3, 2)).items() if n not in local}
    features = {**start, FEATURE_NAME: fingerprint(ASPECTS)}
    sizes = {name: value.size for name, value in start.items()}
    found = []
    for name, breaks in (("whole", [1000]), ("broken", [2 * STEPS + 1, 1000])):
        (tmp_path / name).mkdir()
        with Engine(features, tmp_path / name, silos=2, iterations=ITERATIONS) as engine:
            other = other_silo(engine, sizes)
            path = tmp_path / name / "resume.safetensors"
            processes = [silo(engine, path, local, last) for last in breaks]
            other.join(20)
        found.append(processes)
    ((whole, final),), ((first, _), (second, resumed)) = found
    assert len(whole) == ITERATIONS * STEPS
    assert first == whole[: 2 * STEPS + 1]
    assert second == whole[2 * STEPS :]
    for name, value in final.items():
        np.testing.assert_array_equal(resumed[name], value)
