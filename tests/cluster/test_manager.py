"""`SiloManager` as the callback of a real training, next to a second silo of plain arrays."""

from __future__ import annotations

import threading

import mindspore as ms
import numpy as np
import pytest
from engine import Engine
from members import settings_of
from mindspore import nn

from src.errors import UserError
from src.federated.fingerprint import FEATURE_NAME, fingerprint
from src.federated.manager import SiloManager
from src.federated.rounds import Deadlines, NotFiniteError
from src.federated.silo import Silo, SiloSettings
from src.federated.transport import Client

ASPECTS = {"class list": ["cat", "dog"]}
DEADLINES = Deadlines(join=20, request=10, wait=30)
STEPS = 3


class Trained(ms.Callback):
    """Keeps the weights as they are before each synchronisation."""

    def __init__(self, network: nn.Cell):
        super().__init__()
        self.network, self.weights = network, []

    def on_train_step_end(self, run_context):
        if run_context.original_args().cur_step_num % STEPS == 0:
            self.weights.append(values(self.network))


def values(network: nn.Cell) -> dict[str, np.ndarray]:
    return {param.name: param.asnumpy().copy() for param in network.trainable_params()}


def training(rate: float = 0.001) -> tuple[nn.Cell, ms.Model]:
    ms.set_seed(1)
    network = nn.Dense(3, 2)
    optimizer = nn.Momentum(network.trainable_params(), rate, 0.9)
    return network, ms.Model(network, nn.MSELoss(), optimizer)


def dataset(scale: float = 1.0) -> ms.dataset.NumpySlicesDataset:
    random = np.random.default_rng(0)
    data = random.normal(size=(STEPS, 3)).astype(np.float32) * np.float32(scale)
    labels = random.normal(size=(STEPS, 2)).astype(np.float32)
    return ms.dataset.NumpySlicesDataset((data, labels), shuffle=False).batch(1)


def manager_of(engine: Engine, network: nn.Cell, **options) -> SiloManager:
    more = {"threshold": 2, "aspects": ASPECTS, "deadlines": DEADLINES}
    settings = settings_of(options, 30, 2, **more)
    return SiloManager(
        str(engine.yaml_path),
        network,
        STEPS,
        Client(engine.addresses, engine.fl_name, "trained", longest=DEADLINES.wait),
        settings,
        **options,
    )


def other_silo(engine: Engine, network: nn.Cell, sent: list) -> threading.Thread:
    """A silo of 10 images that sends twice what it got, until the job is finished."""
    model: dict[str, np.ndarray] = {}
    sizes = {name: value.size for name, value in values(network).items()}
    client = Client(engine.addresses, engine.fl_name, "other")
    settings = SiloSettings(10, 2, 2, aspects=ASPECTS, deadlines=DEADLINES)
    silo = Silo(client, model.update, sizes, settings)

    def run() -> None:
        silo.join()
        while not silo.finished:
            sent.append({name: 2 * value for name, value in model.items()})
            silo.exchange(sent[-1])
            silo.join()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def engine(tmp_path):
    network, _ = training()
    start = {name: value + 1 for name, value in values(network).items()}
    features = {**start, FEATURE_NAME: fingerprint(ASPECTS)}
    with Engine(features, tmp_path, silos=2, iterations=2) as running:
        running.start = start
        yield running


def test_training_goes_on_from_the_weighted_mean_until_the_job_is_finished(engine, capsys):
    network, model = training()
    phases: list[str] = []
    manager = manager_of(engine, network, on_phase=lambda phase, iteration: phases.append(phase))
    assert manager.join() == 1
    for name, value in values(network).items():
        np.testing.assert_array_equal(value, engine.start[name])
    sent: list = []
    other = other_silo(engine, network, sent)
    trained = Trained(network)
    model.train(1, dataset(), callbacks=[trained, manager], dataset_sink_mode=False)
    after_first = values(network)
    assert manager.join() == 2
    model.train(5, dataset(), callbacks=[trained, manager], dataset_sink_mode=False)
    other.join(20)

    assert manager.finished and len(manager.rounds) == 2 and len(trained.weights) == 2
    for name, value in after_first.items():
        assert np.abs(trained.weights[1][name] - value).max() < 0.05
        assert np.abs(trained.weights[0][name] - value).max() > 0.2
    for number, got in enumerate([after_first, values(network)]):
        for name, value in got.items():
            theirs = sent[number][name].reshape(value.shape).astype(np.float64)
            mean = (30 * trained.weights[number][name].astype(np.float64) + 10 * theirs) / 40
            np.testing.assert_allclose(value, mean, rtol=1e-6, atol=1e-6)
            assert not np.array_equal(value, engine.start[name])
    final = values(network)
    late = manager_of(engine, network)
    model.train(5, dataset(), callbacks=[late], dataset_sink_mode=False)
    assert late.finished and late._global_step == 1
    np.testing.assert_array_equal(values(network)["weight"], final["weight"])
    assert phases == ["join", "train", "push", "wait", "pull"] * 2 + ["done"]
    assert "joined iteration 1 of 2 as silo 0 with 30 images" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_ends_the_training_unsent(engine):
    network, model = training()
    manager = manager_of(engine, network)
    with pytest.raises(NotFiniteError, match="loss: output 0 of training step 1"):
        model.train(1, dataset(scale=1e30), callbacks=[manager], dataset_sink_mode=False)
    assert not manager.rounds


def test_another_class_list_ends_before_the_first_step(engine):
    network, _ = training()
    manager = manager_of(engine, network, aspects={"class list": ["cat"]})
    before = values(network)
    with pytest.raises(UserError, match="do not agree on: class list"):
        manager.join()
    np.testing.assert_array_equal(values(network)["weight"], before["weight"])
