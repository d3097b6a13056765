"""What leaves a silo, on the real engine: noised updates, and parts that stay."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from engine import Engine
from members import settings_of
from mindspore import nn

from src.errors import UserError
from src.federated.fingerprint import FEATURE_NAME, fingerprint
from src.federated.manager import SiloManager
from src.federated.privacy import Privacy, PrivacyLedger, PrivacySettings, epsilon_of
from src.federated.rounds import Deadlines
from src.federated.transport import Client

ASPECTS = {"class list": ["cat", "dog"]}
DEADLINES = Deadlines(join=20, request=10, wait=30)
IMAGES = (30, 10)
ITERATIONS = 2


class SilosNetwork(nn.Cell):
    """A body and a head, of which the head may stay."""

    def __init__(self, silo: int):
        super().__init__()
        ms.set_seed(silo)
        self.body = nn.Dense(20, 10)
        self.head = nn.Dense(10, 2)


def values(network: nn.Cell) -> dict[str, np.ndarray]:
    return {p.name: p.asnumpy().copy() for p in network.trainable_params()}


def federation(folder: Path, without: str = "none", scale: int = 1) -> Engine:
    features = {
        n: scale * v for n, v in values(SilosNetwork(9)).items() if n[: len(without)] != without
    }
    features[FEATURE_NAME] = fingerprint(ASPECTS)
    folder.mkdir(exist_ok=True)
    return Engine(features, folder, silos=len(IMAGES), iterations=ITERATIONS)


def manager_of(engine: Engine, silo: int, network: nn.Cell, **options) -> SiloManager:
    more = {"threshold": len(IMAGES), "aspects": ASPECTS, "deadlines": DEADLINES}
    settings = settings_of(options, IMAGES[silo], ITERATIONS, number=silo, **more)
    return SiloManager(
        str(engine.yaml_path),
        network,
        1,
        Client(engine.addresses, engine.fl_name, f"silo {silo}", longest=DEADLINES.wait),
        settings,
        **options,
    )


def train(network: nn.Cell, silo: int, iteration: int) -> None:
    """Each silo's own change of every weight."""
    random = np.random.default_rng([silo, iteration])
    for param in network.trainable_params():
        change = random.normal(size=param.shape).astype(np.float32)
        param.set_data(ms.Tensor(param.asnumpy() + np.float32(0.1) * change))


def run(engine: Engine, options: list[dict]) -> tuple[list, list[list[dict]]]:
    """Both silos to the end: their managers, and their weights after each iteration."""
    networks = [SilosNetwork(silo) for silo in range(len(IMAGES))]
    managers = [manager_of(engine, n, net, **options[n]) for n, net in enumerate(networks)]
    for manager in managers:
        manager.join()
    history = [[values(network)] for network in networks]
    for iteration in range(1, ITERATIONS + 1):
        for silo, network in enumerate(networks):
            train(network, silo, iteration)
            managers[silo]._global_step += 1
        others = [threading.Thread(target=m._synchronise, daemon=True) for m in managers[1:]]
        for other in others:
            other.start()
        managers[0]._synchronise()
        for other in others:
            other.join(60)
            assert not other.is_alive()
        for manager, network, past in zip(managers, networks, history):
            past.append(values(network))
            manager.join()
    assert all(manager.finished for manager in managers)
    return managers, history


def privacy_of(folder: Path, clip: float, noise: float) -> Privacy:
    folder.mkdir(parents=True, exist_ok=True)
    settings = PrivacySettings(clip, noise, 1e-5)
    return Privacy(settings, PrivacyLedger(folder, Path("/data")), print)


def test_without_noise_and_within_the_norm_the_mean_is_that_of_fedavg(tmp_path):
    with federation(tmp_path / "plain") as engine:
        _, plain = run(engine, [{}, {}])
    options = [{"privacy": privacy_of(tmp_path / f"w{n}", 1e9, 0.0)} for n in range(2)]
    with federation(tmp_path / "private") as engine:
        _, private = run(engine, options)
    for one, other in zip(plain[0] + plain[1], private[0] + private[1]):
        for name, value in one.items():
            np.testing.assert_array_equal(other[name], value)
    assert np.abs(plain[0][2]["head.weight"] - plain[0][0]["head.weight"]).max() > 0.01


def test_the_servers_get_clipped_updates_with_noise_and_rounds_tell_epsilon(tmp_path):
    clip, noise = 0.5, 0.25
    options = [
        {
            "privacy": privacy_of(tmp_path / f"w{n}", clip, noise),
            "rounds_path": tmp_path / f"w{n}" / "rounds.jsonl",
        }
        for n in range(2)
    ]
    # Weights that the noise does not drown: servers refuse a change of ten times their norm.
    with federation(tmp_path / "job", scale=10) as engine:
        _, history = run(engine, options)
    moved = [
        np.concatenate([(b[n] - a[n]).reshape(-1) for n in a])
        for a, b in zip(history[0][:-1], history[0][1:])
    ]
    # The mean of two noises of 0.125 with weights 3/4 and 1/4, and of updates of norm 0.5.
    expected = clip * noise * np.hypot(0.75, 0.25)
    for change in moved:
        assert 0.7 * expected < change.std() < 1.3 * expected
    for n in range(2):
        lines = (tmp_path / f"w{n}" / "rounds.jsonl").read_text().splitlines()
        told = [json.loads(line)["epsilon"] for line in lines]
        wanted = [epsilon_of([noise] * count, 1e-5) for count in (1, 2)]
        np.testing.assert_allclose(told, wanted, atol=1e-3)
    for name, value in history[0][2].items():
        np.testing.assert_array_equal(history[1][2][name], value)


def test_local_parts_stay_and_the_rest_is_averaged(tmp_path):
    local = {"local": ["head.weight", "head.bias"]}
    with federation(tmp_path / "job", without="head.") as engine:
        managers, history = run(engine, [local, local])
        body = 4 * (20 * 10 + 10)
        for manager in managers:
            assert all(body < r.bytes_up < body + 600 for r in manager.rounds)
        for name in ("body.weight", "body.bias"):
            np.testing.assert_array_equal(history[0][2][name], history[1][2][name])
        for silo in range(2):
            own = SilosNetwork(silo)
            for iteration in (1, 2):
                train(own, silo, iteration)
            for name in local["local"]:
                np.testing.assert_array_equal(history[silo][2][name], values(own)[name])
        whole = manager_of(engine, 0, SilosNetwork(0))
        with pytest.raises(UserError, match="2 weights are not in it, first head.weight"):
            whole.join()
        other = manager_of(engine, 0, SilosNetwork(0), aspects={"class list": ["cat"]}, **local)
        with pytest.raises(UserError, match="do not agree on: class list"):
            other.join()
