"""How often silos synchronise, decided from how far their changes point the same way.

With sync_type adaptive a silo sends, beside its weights, the absolute value of what each of them
changed by. Where all silos move a weight the same way, the change of the mean is as large as the
mean of the changes; where they pull apart it is smaller. The ratio, over all weights and smoothed
over the rounds, is the consistency. While it keeps falling the number of steps stays; when it has
found no new minimum for a while the steps become fewer, so that silos drift less.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from src.federated.aggregation import ABSOLUTE, AdaptiveSettings, Aggregation

# Above every consistency, so that the first round after a change is the new minimum.
NO_MINIMUM = 1.1

# Names in what is kept for another process of the silo, see `AdaptiveFrequency.state`.
CHANGE, SIZE = "mean_change.", "mean_size."
KEPT = ("frequency", "_window", "_lowest", "_lowest_at", "_round")

Arrays = Mapping[str, np.ndarray]


class AdaptiveFrequency:
    """The number of steps in an iteration, the same decision in every silo.

    Args:
        settings: see default_config.yaml.
        frequency: steps of the first iterations.
        names: the weights that travel.

    Attributes:
        frequency: steps of the iteration to come.
    """

    def __init__(self, settings: AdaptiveSettings, frequency: int, names: list[str]):
        self.frequency = frequency
        self._names = names
        self._alpha = np.float32(settings.ema_alpha)
        self._window = settings.observation_window_size
        self._ratio = settings.frequency_increase_ratio
        self._unchanged = settings.unchanged_round
        self._lowest = settings.min_consistent_rate
        self._lowest_at = settings.min_consistent_rate_at_round
        self._round = 0
        self._global: dict[str, np.ndarray] = {}
        self._forget()

    def _forget(self) -> None:
        """Begin the moving averages anew."""
        self._change: dict[str, np.ndarray] = {}
        self._size: dict[str, np.ndarray] = {}

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """The moving averages, 1-D arrays by name, and the numbers that decide."""
        arrays = {CHANGE + name: array for name, array in self._change.items()}
        arrays.update({SIZE + name: array for name, array in self._size.items()})
        return arrays, {key: getattr(self, key) for key in KEPT}

    def restore(self, arrays: Arrays, numbers: Mapping[str, float]) -> None:
        """Take what `state` gave in an earlier process of this silo."""
        for key in KEPT:
            setattr(self, key, numbers[key])
        self._change = {n: arrays[CHANGE + n].copy() for n in self._names if CHANGE + n in arrays}
        self._size = {n: arrays[SIZE + n].copy() for n in self._names if SIZE + n in arrays}

    def upload(self, weights: Arrays) -> dict[str, np.ndarray]:
        """What is sent beside `weights`: how much each has changed since the global model."""
        return {
            ABSOLUTE + name: np.abs(weights[name].reshape(-1) - self._global[name])
            for name in self._names
        }

    def loaded(self, features: Arrays) -> None:
        """Take a global model; one that has changed tells how consistent its round was.

        It does not matter whether this silo took part in the round, so that all silos decide the
        same. A model that has not changed is that of a round that failed, which tells nothing.
        """
        if self._global and any((features[n] != self._global[n]).any() for n in self._names):
            self._decide(self._consistency(features))
        self._global = {name: features[name].copy() for name in self._names}

    def _consistency(self, features: Arrays) -> float:
        """The ratio of this round's smoothed change to its smoothed size, 0 to 1."""
        total, count = 0.0, 0
        for name in self._names:
            change = features[name] - self._global[name]
            self._change[name] = self._smooth(self._change.get(name), change)
            self._size[name] = self._smooth(self._size.get(name), features[ABSOLUTE + name])
            moved = self._size[name] > 0
            ratio = np.abs(self._change[name][moved]) / self._size[name][moved]
            total += float(ratio.sum(dtype=np.float64))
            count += change.size
        return total / count

    def _smooth(self, before: np.ndarray | None, now: np.ndarray) -> np.ndarray:
        now = now * (1 - self._alpha)
        return now if before is None else before * self._alpha + now

    def _decide(self, consistency: float) -> None:
        waited = self._round - self._lowest_at
        if consistency < self._lowest:
            self._lowest, self._lowest_at = consistency, self._round
        elif waited > self._window and self.frequency > 1 and self._round > self._unchanged:
            self.frequency = -(-self.frequency // self._ratio)
            self._lowest, self._lowest_at = NO_MINIMUM, self._round
            self._window *= self._ratio
            self._forget()
        self._round += 1


def adaptive_of(
    aggregation: Aggregation, frequency: int, names: list[str]
) -> AdaptiveFrequency | None:
    """The adaptive frequency of a job; None where the number of steps is fixed."""
    if aggregation.adaptive is None:
        return None
    return AdaptiveFrequency(aggregation.adaptive, frequency, names)
