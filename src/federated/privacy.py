"""Differential privacy on the client: what leaves the silo is a clipped update with noise on it.

The update is the difference of the trained weights to the global model that training began from.
It is scaled down to an L2 norm of at most `clip_norm` over all values that travel, and every value
gets Gaussian noise of standard deviation `noise_multiplier * clip_norm`. What is sent is the global
model and that sum, so that servers need to know nothing of it: Gaussian mechanism, Dwork and Roth,
"The algorithmic foundations of differential privacy", 2014, appendix A, with the clipping of
McMahan et al., "Learning differentially private recurrent language models", 2018, at the silo.

The guarantee is of one upload of one silo, against everybody who sees it, the servers included. It
compares any two data sets of the silo: two clipped updates differ by up to 2 * clip_norm.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable

import numpy as np

from src.federated.privacy_ledger import PrivacyLedger
from src.federated.privacy_settings import PrivacySettings, privacy_settings
from src.federated.rounds import Features, NotFiniteError, check_finite
from src.job.job_config import JobConfig

# In units of clip_norm, the largest distance of two clipped updates.
SENSITIVITY = 2.0
# Values that are worked on at a time, in float64.
PIECE = 1 << 18


class Privacy:
    """Makes a silo's uploads private, and adds up what they have told.

        privacy.remember(global_model)      # whenever one is loaded
        ...                                 # training
        upload = privacy.protect(weights, step, iteration)

    An upload that would spend more than `settings.max_epsilon` is the global model itself: it says
    nothing of the silo's data, and lets the other silos' iteration end.

    Args:
        settings: see there.
        ledger: keeps the uploads of this and of earlier processes.
        log: takes a line.

    Attributes:
        epsilon: what all uploads so far have spent at `settings.delta`; infinite where one had no
            noise, 0 before the first.
    """

    def __init__(
        self, settings: PrivacySettings, ledger: PrivacyLedger, log: Callable[[str], None]
    ):
        self._settings = settings
        self._ledger = ledger
        self._log = log
        self._model: dict[str, np.ndarray] = {}
        self._told_of_end = False
        if not settings.noise_multiplier:
            log("WARNING: dp_noise_multiplier is 0: what leaves is clipped, but not private")
        for line in ledger.begin():
            log(line)
        self.epsilon = epsilon_of(ledger.multipliers, settings.delta)

    def remember(self, model: Features) -> None:
        """Keep a copy of the global model, (float32 arrays of any shape), for the next upload."""
        for name, array in model.items():
            flat = array.reshape(-1)
            if name in self._model:
                np.copyto(self._model[name], flat)
            else:
                self._model[name] = flat.astype(np.float32)

    def protect(self, weights: Features, step: int, iteration: int) -> dict[str, np.ndarray]:
        """What leaves the silo in place of `weights`; it is entered in the ledger before.

        The result takes the memory of the global model, which `remember` must bring anew before
        the next call.

        Args:
            weights: name -> float32 array, the names those of the last global model.
            step, iteration: for messages and the ledger.

        Raises:
            NotFiniteError: a weight, or the update's norm, is NaN or infinite; nothing is entered.
        """
        check_finite(weights, step, 1)
        if self._is_spent():
            return self._model_as(weights)
        settings = self._settings
        norm = self._update_norm(weights)
        if not math.isfinite(norm):  # a comparison with NaN would leave the update as it is
            raise NotFiniteError(
                f"the update's norm is {norm} after step {step}: the global model that it began "
                "with is not finite; nothing was sent"
            )
        scale = min(1.0, settings.clip_norm / norm) if norm else 1.0
        deviation = settings.noise_multiplier * settings.clip_norm
        self._spend(iteration)
        self._log(
            f"privacy: update of norm {norm:.4g}, times {scale:.4g} to keep it within "
            f"{settings.clip_norm:.4g}; noise of standard deviation {deviation:.4g} on each value; "
            f"{self._spent()}"
        )
        self._add_update(weights, scale, deviation)
        return self._model_as(weights)

    def _model_as(self, weights: Features) -> dict[str, np.ndarray]:
        """The global model, or what has been made of it, in the shapes of `weights`."""
        return {name: self._model[name].reshape(array.shape) for name, array in weights.items()}

    def _is_spent(self) -> bool:
        """Whether another upload would spend more than it may; the first time it is said."""
        most = self._settings.max_epsilon
        if not most:
            return False
        after = self._epsilon_after_one()
        if after <= most:
            return False
        if not self._told_of_end:
            self._told_of_end = True
            self._log(
                f"privacy: dp_max_epsilon is {most:g}: {self._spent()}, and one more would make it "
                f"{after:.4g}; from here on this silo sends nothing that it has trained, but the "
                "global model as it came, and goes on receiving"
            )
        return True

    def _epsilon_after_one(self) -> float:
        multipliers = [*self._ledger.multipliers, self._settings.noise_multiplier]
        return epsilon_of(multipliers, self._settings.delta)

    def _update_norm(self, weights: Features) -> float:
        """L2 norm of the update over all values."""
        square = 0.0
        for base, array in self._pieces(weights):
            update = np.subtract(array, base, dtype=np.float64)
            square += float(update @ update)
        return math.sqrt(square)

    def _add_update(self, weights: Features, scale: float, deviation: float) -> None:
        """Turn the global model into itself, the scaled update and the noise.

        All three are added in float64 and rounded to float32 once.
        """
        generator = fresh_generator()
        for base, array in self._pieces(weights):
            update = np.subtract(array, base, dtype=np.float64)
            update *= scale
            if deviation:
                noise = generator.standard_normal(update.size)
                noise *= deviation
                update += noise
            update += base
            base[:] = update

    def _pieces(self, weights: Features) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """The global model and the weights side by side, 1-D views of PIECE values at most."""
        for name, array in weights.items():
            base, flat = self._model[name], array.reshape(-1)
            for begin in range(0, flat.size, PIECE):
                yield base[begin : begin + PIECE], flat[begin : begin + PIECE]

    def _spend(self, iteration: int) -> None:
        self.epsilon = self._epsilon_after_one()
        self._ledger.add(iteration, self._settings, self.epsilon)

    def _spent(self) -> str:
        uploads = len(self._ledger.multipliers)
        if math.isinf(self.epsilon):
            return f"epsilon is infinite: of {uploads} upload(s) one had no noise"
        at = f"epsilon {self.epsilon:.4g} at delta {self._settings.delta:g}"
        return f"{at} in {uploads} upload(s)"


def make_privacy(
    job: JobConfig, config: Any, data: Path, log: Callable[[str], None]
) -> Privacy | None:
    """That of a worker on the shard in the folder `data`; None where it is off."""
    settings = privacy_settings(job, config)
    return Privacy(settings, PrivacyLedger(config.output_dir, data), log) if settings else None


def fresh_generator() -> np.random.Generator:
    """A generator of noise that nobody can start again: seeded by the operating system alone."""
    seed = int.from_bytes(os.urandom(32), "little")
    return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence(seed)))


def epsilon_of(multipliers: Iterable[float], delta: float) -> float:
    """Epsilon at `delta` of uploads with these noise multipliers, one after another.

    An upper bound, by Renyi differential privacy (Mironov, 2017): a few percent above the exact
    value, and no dearer with a thousand uploads.
    """
    counts = Counter(multipliers)
    if not counts:
        return 0.0
    if 0 in counts:
        return math.inf
    # Late: it takes a second, and few silos need it.
    from dp_accounting import GaussianDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    for multiplier, count in counts.items():
        accountant.compose(GaussianDpEvent(multiplier / SENSITIVITY), count)
    return float(accountant.get_epsilon(delta))
