"""Recorded cases: configuration, weights by their recipe, inputs."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from types import SimpleNamespace

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.model_utils.config import Config, load_config

GOLDEN = Path(__file__).parent
INPUT_KEYS = ("image", "image_shape", "box", "label", "valid")


def golden_config(case: str, **changes) -> Config:
    """The configuration of a recorded case, with changes."""
    values = json.loads((GOLDEN / "config.json").read_text())[case]
    del values["num_bboxes"]
    return load_config(**{**values, **changes})


def golden_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The recorded weights' recipe: normal numbers from the name, scaled by kind."""
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith(("moving_mean", "beta", "bias")):
        return (0.02 * z).astype(np.float32)
    if name.endswith("moving_variance"):
        return (1 + 0.1 * np.abs(z)).astype(np.float32)
    if name.endswith("gamma"):
        scale = 0.2 if name.endswith("bn3.gamma") else 1.0
        return (scale * (1 + 0.05 * z)).astype(np.float32)
    fan = np.prod(shape[1:]) if len(shape) == 4 else shape[0]
    return (np.sqrt(gain(name) / fan) * z).astype(np.float32)


def gain(name: str) -> float:
    """Variance times fan-in of a weight."""
    gains = {"fpn_ncek": 0.5, "rpn_cls": 1.0, "rpn_reg": 0.02, "cls_scores": 1.0, "reg_scores": 0.5}
    return next((value for part, value in gains.items() if part in name), 2.0)


def set_golden_weights(cell: nn.Cell, prefix: str = "") -> None:
    """Give each parameter of a cell its recorded value."""
    for parameter in cell.get_parameters():
        parameter.set_data(Tensor(golden_weight(prefix + parameter.name, parameter.shape)))


def golden_inputs(gts: int) -> list[Tensor]:
    """The recorded batch of two images: image, image_shape, box, label, valid."""
    arrays = dict(np.load(GOLDEN / "net_inputs_gts16.npz"))
    arrays.update(np.load(GOLDEN / f"net_inputs_gts{gts}.npz"))
    return [Tensor(arrays[key]) for key in INPUT_KEYS]


@pytest.fixture(scope="session", autouse=True)
def graph_mode():
    """As in training: compiled graphs."""
    mindspore.set_context(mode=mindspore.GRAPH_MODE)


@pytest.fixture(scope="session")
def golden():
    """What the tests of the detector share: configuration, weights, inputs of a recorded case."""
    return SimpleNamespace(
        folder=GOLDEN, config=golden_config, set_weights=set_golden_weights, inputs=golden_inputs
    )
