"""Checks whether a model can come from honest training, by its values and its change.

The engine checks an upload's names and sizes, and that its numbers are finite. An upload can still
ruin a mean: multiplied by a thousand, with one huge weight, with a wrong fingerprint. The bounds
are wide, since they must not stop a job that learns: training from random weights, a high learning
rate, a silo with much more data that comes late. They prevent ruined models, not subtle
manipulation.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np

from src.federated.aggregation import ABSOLUTE, CONTROL
from src.federated.rounds import Features
from src.weights.ckpt_file import MARK, value_fault

# The number of earlier changes that define what is usual.
RECENT = 5
# A change of this share of the model's norm counts as usual, whatever the earlier ones were: a silo
# that joins late with hundreds of times the others' data causes such changes.
USUAL_SHARE = 0.5
# Number of values subtracted at a time, so that they stay in the processor's cache.
PIECE = 1 << 16


class ModelBounds:
    """Keeps the last good model, and compares the next one with it.

    A model is too far away if the L2 norm of its change, over all weights, exceeds `limit` times
    the largest of: the last RECENT changes, and half the model's norm. Before the first change it
    is the whole norm. For a change over several iterations the bound is multiplied by their number.

    Args:
        limit: see above; 0 sets no bound.

    Attributes:
        good: name -> array, copies of the last model given to `keep`; {} before the first.
        iteration: that model's iteration; -1 before the first.
    """

    def __init__(self, limit: float):
        self.good: dict[str, np.ndarray] = {}
        self.iteration = -1
        self._limit = limit
        self._changes: deque[float] = deque(maxlen=RECENT)

    def fault(self, model: Features, iteration: int) -> str:
        """Return why an iteration's model must not be used to continue; "" if it may be."""
        return value_fault(model) or self._too_far(model, max(1, iteration - self.iteration))

    def keep(self, model: Features, iteration: int) -> None:
        """Keep a copy of an iteration's model as the last good one."""
        self.iteration = iteration
        if self.good:
            change = self._change(model)
            if change > 0:  # otherwise the iteration failed
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
    """Return the weights' names; an algorithm's additional arrays start at zero."""
    return [name for name in model if name != MARK and not name.startswith((ABSOLUTE, CONTROL))]


def _norm(arrays: Iterable[np.ndarray]) -> float:
    """Return the L2 norm of all their values; infinite beyond the range of float32."""
    square = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for array in arrays:
            flat = array.reshape(-1)
            square += float(flat @ flat)
    return math.sqrt(square)
