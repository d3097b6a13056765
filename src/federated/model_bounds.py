"""Whether a finished model can come from honest training, by its values and by how far it moved.

The engine checks names, sizes and finite numbers of an upload, so that one can still ruin a mean:
multiplied by a thousand, with one huge weight, with a wrong fingerprint. The bounds are wide, since
they must not stop a job that learns: training from random weights, a high learning rate, a silo
with much more data that comes late. They keep a model from being ruined, not from being steered.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np

from src.federated.aggregation import ABSOLUTE, CONTROL
from src.federated.rounds import Features
from src.weights.ckpt_file import MARK, value_fault

# So many earlier changes say what is usual.
RECENT = 5
# A change of this share of the model's norm is usual, whatever the earlier ones were: a silo with
# hundreds of times the data of the others that joins late makes such ones.
USUAL_SHARE = 0.5
# Values that are subtracted at a time: they stay in the processor's cache.
PIECE = 1 << 16


class ModelBounds:
    """Keeps the last good model, and compares the next one with it.

    A model is too far from it where the L2 norm of the change, over all weights, is more than
    `limit` times the largest of: the last RECENT changes, and half the model's norm. Before
    the first change that is the whole norm. Over several iterations it is as many times that.

    Args:
        limit: see above; 0 bounds no change.

    Attributes:
        good: name -> array, copies of what `keep` was given last; {} before.
        iteration: of that model; -1 before.
    """

    def __init__(self, limit: float):
        self.good: dict[str, np.ndarray] = {}
        self.iteration = -1
        self._limit = limit
        self._changes: deque[float] = deque(maxlen=RECENT)

    def fault(self, model: Features, iteration: int) -> str:
        """Why the model of an iteration is none to go on from; "" where it may be one."""
        return value_fault(model) or self._too_far(model, max(1, iteration - self.iteration))

    def keep(self, model: Features, iteration: int) -> None:
        """Make a copy of the model of an iteration the last good one."""
        self.iteration = iteration
        if self.good:
            change = self._change(model)
            if change > 0:  # else of an iteration that failed
                self._changes.append(change)
        for name, array in model.items():
            kept = self.good.get(name)
            if kept is None or kept.shape != array.shape:
                self.good[name] = array.copy()
            else:
                np.copyto(kept, array)

    def _too_far(self, model: Features, iterations: int) -> str:
        if not (self.good and self._limit):
            return ""
        size = _norm(self.good[name] for name in _weights(self.good))
        usual = max([size * (USUAL_SHARE if self._changes else 1.0), *self._changes])
        change = self._change(model)
        if not usual or change <= self._limit * usual * iterations:
            return ""
        recent = "it is the first change"
        if self._changes:
            recent = f"the largest of the last {len(self._changes)} was {max(self._changes):.3g}"
        return (
            f"its weights changed by a norm of {change:.3g}, more than {self._limit:g} times what "
            f"is usual ({recent}, the norm of the weights is {size:.3g}; max_model_change)"
        )

    def _change(self, model: Features) -> float:
        names = [name for name in _weights(model) if name in self.good]
        pairs = ((model[name].reshape(-1), self.good[name].reshape(-1)) for name in names)
        return _norm(
            new[begin : begin + PIECE] - old[begin : begin + PIECE]
            for new, old in pairs
            for begin in range(0, new.size, PIECE)
        )


def _weights(model: Features) -> list[str]:
    """The names of the weights: what an algorithm adds to them begins as zeros."""
    return [name for name in model if name != MARK and not name.startswith((ABSOLUTE, CONTROL))]


def _norm(arrays: Iterable[np.ndarray]) -> float:
    """The L2 norm of all their values; infinite beyond what float32 holds."""
    square = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for array in arrays:
            flat = array.reshape(-1)
            square += float(flat @ flat)
    return math.sqrt(square)
