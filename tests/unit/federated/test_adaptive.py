"""The adaptive frequency, next to the engine's own decisions on the same rounds."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from mindspore import Parameter, Tensor
from mindspore_federated import FederatedLearningManager
from mindspore_federated.common import _fl_context
from mindspore_federated.startup.yaml_config import load_yaml_config

from src.federated.aggregation import ABSOLUTE, AdaptiveSettings
from src.federated.algorithms import AdaptiveFrequency
from src.model_utils.config import PROJECT_DIR

SHAPES = {"a": (3, 4), "b": (5,)}
ROUNDS, FIRST = 40, 40


class EngineManager(FederatedLearningManager):
    """The engine's manager, for what it decides after a round; it has no client and no network."""

    def __init__(self, settings: AdaptiveSettings):
        self.parameters = [zeros(name, shape) for name, shape in SHAPES.items()]
        self._model, self._sync_frequency = self, FIRST
        self._as_set_init_state(asdict(settings))
        self.parameters += [zeros(ABSOLUTE + name, shape) for name, shape in SHAPES.items()]

    def __del__(self):
        pass

    def trainable_params(self) -> list[Parameter]:
        return self.parameters

    def round(self, features: dict[str, np.ndarray]) -> int:
        for parameter in self.parameters:
            parameter.set_data(Tensor(features[parameter.name].reshape(parameter.shape)))
        self._as_analyze_gradient()
        self._round_id += 1
        self._as_set_last_param()
        return self._sync_frequency


def zeros(name: str, shape: tuple[int, ...]) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name)


@pytest.mark.parametrize("seed", range(6))
def test_the_steps_become_fewer_when_the_engine_would_make_them_fewer(seed):
    random = np.random.default_rng(seed)
    settings = AdaptiveSettings(
        min_consistent_rate=float(random.choice([1.1, 0.5])),
        ema_alpha=float(random.uniform(0.1, 0.9)),
        observation_window_size=int(random.integers(1, 4)),
        frequency_increase_ratio=int(random.integers(2, 4)),
        unchanged_round=int(random.integers(0, 5)),
    )
    load_yaml_config(str(PROJECT_DIR / "default_yaml_config.yaml"), _fl_context.ROLE_OF_SERVER)
    engine = EngineManager(settings)
    ours = AdaptiveFrequency(settings, FIRST, list(SHAPES))
    # A silo that takes part in half of the rounds sees each global model all the same.
    seldom = AdaptiveFrequency(settings, FIRST, list(SHAPES))
    model = {name: np.zeros(np.prod(shape), np.float32) for name, shape in SHAPES.items()}
    ours.loaded(model)
    seldom.loaded(model)
    found, expected = [], []
    for number in range(ROUNDS):
        features = {}
        for name, value in model.items():
            change = random.normal(size=value.size) * 0.1
            features[name] = (value + change).astype(np.float32)
            size = np.abs(change) * random.uniform(1, 2, value.size)
            features[ABSOLUTE + name] = size.astype(np.float32)
        expected.append(engine.round(features))
        ours.upload(features)
        ours.loaded(features)
        if number % 2:
            seldom.upload(features)
        seldom.loaded(features)
        assert seldom.frequency == ours.frequency
        found.append(ours.frequency)
        model = {name: features[name] for name in SHAPES}
    assert found == expected
    assert found[-1] < FIRST
