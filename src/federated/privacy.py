"""Differential privacy on the client: a silo sends a clipped update with added noise.

The update is the trained weights minus the global model that training began from. It is scaled down
to an L2 norm of at most `clip_norm` over all federated values, and every value gets Gaussian noise
of standard deviation `noise_multiplier * clip_norm`. The silo sends the global model plus the noisy
update, so the servers need no change. Sources: the Gaussian mechanism of Dwork and Roth, "The
algorithmic foundations of differential privacy", 2014, appendix A; the clipping of McMahan et al.,
"Learning differentially private recurrent language models", 2018, at the silo.

The guarantee holds for one upload of one silo, against everybody who sees it, the servers included.
It compares any two data sets of the silo: two clipped updates differ by up to 2 * clip_norm.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np

from src.errors import UserError
from src.federated.aggregation import WEIGHTS_ONLY, aggregation_of
from src.federated.rounds import Features, NotFiniteError, SyncError, check_finite
from src.files import append_line, parsed_json, reason
from src.job.job_config import JobConfig


@dataclass(frozen=True)
class PrivacySettings:
    """Values of dp_clip_norm, dp_noise_multiplier, dp_delta and dp_max_epsilon (0: no limit)."""

    clip_norm: float
    noise_multiplier: float
    delta: float
    max_epsilon: float = 0.0


def privacy_settings(job: JobConfig, config: Any) -> PrivacySettings | None:
    """Return the checked settings; None if dp_clip_norm is 0, which disables privacy.

    Raises:
        UserError: values that make no sense, or an algorithm that sends more than the weights.
    """
    clip, noise, delta = config.dp_clip_norm, config.dp_noise_multiplier, config.dp_delta
    most = config.dp_max_epsilon
    for key, value in (
        ("dp_clip_norm", clip),
        ("dp_noise_multiplier", noise),
        ("dp_max_epsilon", most),
    ):
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{key} is {value}, expected a finite number, 0 or more")
    if not 0 < delta < 1:
        raise UserError(f"dp_delta is {delta}, expected more than 0 and less than 1, as in 1e-5")
    if clip == 0 and noise > 0:
        raise UserError(
            f"dp_noise_multiplier is {noise} and dp_clip_norm 0: noise says nothing about an "
            "update of any size; give dp_clip_norm too, or neither"
        )
    if most > 0 and noise == 0:
        raise UserError(
            f"dp_max_epsilon is {most} and dp_noise_multiplier {noise}: without noise epsilon is "
            "infinite at the first upload; set dp_clip_norm and dp_noise_multiplier too, or leave "
            "dp_max_epsilon at 0"
        )
    if clip == 0:
        return None
    aggregation = aggregation_of(job, config)
    if not aggregation.facts.sends_weights_only:
        raise UserError(
            f"dp_clip_norm is {clip} and the job has aggregation_type {aggregation.kind} and "
            f"sync_type {config.sync_type}, expected {' or '.join(WEIGHTS_ONLY)} and fixed: "
            "otherwise more than noised weights would leave the silo"
        )
    return PrivacySettings(clip, noise, delta, most)


LEDGER = "privacy.jsonl"


class PrivacyLedger:
    """The ledger of one worker's private uploads of one data set.

    Args:
        folder: the folder of the worker's log, which holds the ledger.
        data: identifies the data set; entries of other data sets are not counted.

    Attributes:
        multipliers: the noise multiplier of each upload so far.
    """

    def __init__(self, folder: Path, data: Path):
        self._folder = folder.absolute()
        self._data = str(data.absolute())
        self.multipliers: list[float] = []

    def begin(self) -> list[str]:
        """Read the entries of earlier processes.

        Returns:
            Lines that describe what was found.

        Raises:
            UserError: a ledger cannot be read.
        """
        said = []
        for folder in self._folders():
            if (folder / LEDGER).is_file():
                self.multipliers += self._counted(folder / LEDGER)
            elif (folder / "rounds.jsonl").is_file() and folder != self._folder:
                said.append(
                    f"WARNING: {folder} is of an earlier run without dp_clip_norm: what it sent "
                    "had no noise and is not counted"
                )
        if self.multipliers:
            said.append(f"privacy: {len(self.multipliers)} earlier upload(s) of this data count")
        else:
            said.append(f"privacy: no earlier upload of {self._data} is known; counting from 0")
        return said

    def add(self, iteration: int, settings: PrivacySettings, epsilon: float) -> None:
        """Enter an upload; it is on the disk when this returns.

        Raises:
            SyncError: the entry could not be written.
        """
        entry = {
            "iteration": iteration,
            "clip_norm": settings.clip_norm,
            "noise_multiplier": settings.noise_multiplier,
            "delta": settings.delta,
            "epsilon": epsilon if math.isfinite(epsilon) else None,
            "data": self._data,
        }
        path = self._folder / LEDGER
        try:
            append_line(path, json.dumps(entry), durable=True, private=True)
        except OSError as error:
            raise SyncError(
                f"{path} could not be written, nothing was sent: {reason(error)}"
            ) from error
        self.multipliers.append(settings.noise_multiplier)

    def _folders(self) -> list[Path]:
        """Return this worker's folder and the earlier ones next to it."""
        earlier = [
            path
            for path in self._folder.parent.glob(f"{self._folder.name}.*")
            if path.suffix[1:].isdigit()
        ]
        return [*sorted(earlier), self._folder]

    def _counted(self, path: Path) -> list[float]:
        """Return the noise multipliers of the entries for this ledger's data.

        An unfinished last line belongs to an upload that was never sent.
        """
        *lines, _ = path.read_text(encoding="utf-8").split("\n")
        entries = [self._entry(path, number, line) for number, line in enumerate(lines, 1)]
        return [entry["noise_multiplier"] for entry in entries if entry["data"] == self._data]

    @staticmethod
    def _entry(path: Path, number: int, line: str) -> dict[str, Any]:
        try:
            entry = parsed_json(line)
            if entry["noise_multiplier"] >= 0 and isinstance(entry["data"], str):
                return entry
        except (ValueError, KeyError, TypeError):
            pass
        raise UserError(
            f"{path}, line {number}: no entry of a private upload ({line[:40]!r}); without it "
            "epsilon would be too small: restore the file, or move the folder away to start from 0"
        )


# The largest distance between two clipped updates, in units of clip_norm.
SENSITIVITY = 2.0
# Number of values processed at a time, in float64.
PIECE = 1 << 18


class Privacy:
    """Makes a silo's uploads private, and adds up the privacy they have spent.

        privacy.remember(global_model)      # whenever one is loaded
        ...                                 # training
        upload = privacy.protect(weights, step, iteration)

    If an upload would spend more than `settings.max_epsilon`, the global model itself is sent: it
    reveals nothing about the silo's data, and lets the other silos' iteration end.

    Args:
        settings: see `PrivacySettings`.
        ledger: records the uploads of this and earlier processes.
        log: called with a log line.

    Attributes:
        epsilon: what all uploads so far have spent at `settings.delta`; infinite if one had no
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
        """Keep a copy of the global model (float32 arrays of any shape) for the next upload."""
        for name, array in model.items():
            flat = array.reshape(-1)
            if name in self._model:
                np.copyto(self._model[name], flat)
            else:
                self._model[name] = flat.astype(np.float32)

    def protect(self, weights: Features, step: int, iteration: int) -> dict[str, np.ndarray]:
        """Return what is sent in place of `weights`, after entering it in the ledger.

        The result uses the memory of the global model, so call `remember` again before the next
        call.

        Args:
            weights: name -> float32 array, with the names of the last global model.
            step, iteration: for messages and the ledger.

        Raises:
            NotFiniteError: a weight, or the update's norm, is NaN or infinite; nothing is entered.
        """
        check_finite(weights, step, 1)
        if self._is_spent():
            return self._model_as(weights)
        settings = self._settings
        norm = self._update_norm(weights)
        if not math.isfinite(norm):  # a comparison with NaN would skip the clipping
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
        """Return the global model's memory, possibly modified, in the shapes of `weights`."""
        return {name: self._model[name].reshape(array.shape) for name, array in weights.items()}

    def _is_spent(self) -> bool:
        """Return whether another upload would exceed the limit; log it the first time."""
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
        """Return the L2 norm of the update over all values."""
        square = 0.0
        for base, array in self._pieces(weights):
            update = np.subtract(array, base, dtype=np.float64)
            square += float(update @ update)
        return math.sqrt(square)

    def _add_update(self, weights: Features, scale: float, deviation: float) -> None:
        """Add the scaled update and the noise to the global model, in place.

        The sum is computed in float64 and rounded to float32 once.
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
        """Yield pieces of the global model and the weights: 1-D views of PIECE values at most."""
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
    """Make the `Privacy` of a worker on the shard in the folder `data`; None if disabled."""
    settings = privacy_settings(job, config)
    return Privacy(settings, PrivacyLedger(config.output_dir, data), log) if settings else None


def fresh_generator() -> np.random.Generator:
    """Return a noise generator that nobody can reproduce: seeded by the operating system only."""
    seed = int.from_bytes(os.urandom(32), "little")
    return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence(seed)))


def epsilon_of(multipliers: Iterable[float], delta: float) -> float:
    """Return epsilon at `delta` for successive uploads with these noise multipliers.

    It is an upper bound, by Renyi differential privacy (Mironov, 2017): a few percent above the
    exact value, and no slower to compute with a thousand uploads.
    """
    counts = Counter(multipliers)
    if not counts:
        return 0.0
    if 0 in counts:
        return math.inf
    # Imported late: it takes a second, and few silos need it.
    from dp_accounting import GaussianDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    for multiplier, count in counts.items():
        accountant.compose(GaussianDpEvent(multiplier / SENSITIVITY), count)
    return float(accountant.get_epsilon(delta))
