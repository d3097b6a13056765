"""Write checkpoints of a few values as servers do; read and compare them as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from commands import TINY
from mindspore import Tensor, load_checkpoint, save_checkpoint

from src.model_utils.config import load_config
from src.training import build_detector

WEIGHTS = {"conv.weight": np.ones((4, 3), np.float32), "fc.bias": np.full(7, 2, np.float32)}


def save_model(path: Path, weights: dict[str, np.ndarray] | None = None) -> Path:
    """Write `weights`, or a few ones, and return the path."""
    weights = weights or WEIGHTS
    save_checkpoint([{"name": n, "data": Tensor(a)} for n, a in weights.items()], str(path))
    path.chmod(0o600)
    return path


def read_model(path: Path) -> dict[str, np.ndarray]:
    """Return the weights in a checkpoint."""
    return {name: value.asnumpy() for name, value in load_checkpoint(str(path)).items()}


def assert_same_model(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    """Check that the weights are equal to the last bit."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def save_resnet(path: Path, seed: int = 7) -> Path:
    """Write a ResNet of the tiny detector's backbone under ModelZoo's names, and return the path.

    Args:
        seed: seed of its values, another one than the tiny configuration's.
    """
    net, _ = build_detector(load_config(TINY, seed=seed))
    values = {}
    for parameter in net.get_parameters():
        part, _, name = parameter.name.partition(".")
        if part == "backbone":
            name = name.replace("conv_down_sample", "down_sample_layer.0")
            name = name.replace("bn_down_sample", "down_sample_layer.1")
            values[name] = parameter.asnumpy()
    return save_model(path, values)
