"""Checkpoints as servers write them, of a few values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mindspore import Tensor, save_checkpoint

WEIGHTS = {"conv.weight": np.ones((4, 3), np.float32), "fc.bias": np.full(7, 2, np.float32)}


def save_model(path: Path, weights: dict[str, np.ndarray] | None = None) -> Path:
    """Write `weights`, or a few ones, and return the path."""
    weights = weights or WEIGHTS
    save_checkpoint([{"name": n, "data": Tensor(a)} for n, a in weights.items()], str(path))
    path.chmod(0o600)
    return path
