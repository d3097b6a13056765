"""BatchNorm trained with one epsilon, so that it gives the same with another."""

from __future__ import annotations

import numpy as np

from src.errors import UserError

VARIANCE = "moving_variance"


def fold_epsilon(values: dict[str, np.ndarray], trained: float, ours: float) -> int:
    """Change stored variances in place so that `ours` gives what `trained` gave.

    With stored statistics a BatchNorm is `gamma * (x - mean) / sqrt(variance + eps) + beta`, so
    `variance + trained - ours` is exact. Where that would be below 0 it is 0, and gamma takes the
    rest.

    Args:
        values: by the detector's names.
        trained, ours: epsilons.

    Returns:
        The number of channels whose gamma was changed.

    Raises:
        UserError: a variance that is none.
    """
    rescaled = 0
    for name in [name for name in values if name.endswith(VARIANCE)]:
        total = values[name].astype(np.float64) + trained
        if (values[name] < 0).any() or not (total > 0).all():
            raise UserError(f"{name} has a value that is no variance with epsilon {trained:g}")
        folded = np.maximum(total - ours, 0)
        values[name] = folded.astype(np.float32)
        low = total < ours
        if low.any():
            gamma = name[: -len(VARIANCE)] + "gamma"
            factor = np.sqrt(np.where(low, ours / total, 1))
            values[gamma] = (values[gamma] * factor).astype(np.float32)
            rescaled += int(low.sum())
    return rescaled
