"""The aggregation algorithm's settings, read and checked without MindSpore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from src.errors import UserError
from src.federated.fingerprint import ALGORITHM_ASPECT, SYNC_ASPECT, UNIT_ASPECT, fingerprint
from src.job.job_config import JobConfig

FEDAVG, FEDPROX, SCAFFOLD, FEDNOVA = "FedAvg", "FedProx", "Scaffold", "FedNova"


@dataclass(frozen=True)
class AlgorithmFacts:
    """What the rest of the suite has to know about an algorithm; `algorithms` has its class.

    Attributes:
        sends_weights_only: whether an upload holds the weights and nothing else, and the servers
            return their mean. Differential privacy and sync_type adaptive need it.
        supports_ranks: whether a silo of several ranks can take part.
        has_controls: whether servers and silos exchange a control variate for each weight.
        adds_uploads: whether the servers add uploads to their model, instead of averaging models;
            a silo then declares its number of steps as its weight.
        silo_models: number of arrays of the model's size that a silo keeps in memory.
        resume_models: how many of them are in the state for --resume.
        example: keys of the federation file's section `aggregation` for a comparison of two silos.
    """

    sends_weights_only: bool = False
    supports_ranks: bool = False
    has_controls: bool = False
    adds_uploads: bool = False
    silo_models: int = 0
    resume_models: int = 0
    example: Mapping[str, float] = field(default_factory=dict)


ALGORITHMS: dict[str, AlgorithmFacts] = {
    FEDAVG: AlgorithmFacts(sends_weights_only=True, supports_ranks=True),
    FEDPROX: AlgorithmFacts(sends_weights_only=True, silo_models=1, example={"iid_rate": 0.01}),
    SCAFFOLD: AlgorithmFacts(
        has_controls=True, silo_models=3, resume_models=1, example={"total_client_num": 2}
    ),
    FEDNOVA: AlgorithmFacts(adds_uploads=True, silo_models=1),
}
# Algorithms that work with differential privacy and with sync_type adaptive.
WEIGHTS_ONLY = tuple(kind for kind, facts in ALGORITHMS.items() if facts.sends_weights_only)

# The servers know a control variate by this prefix, and count it otherwise than a weight.
CONTROL = "control."
# The adaptive frequency's second half of an upload.
ABSOLUTE = "as_abs_grad."


@dataclass(frozen=True)
class AdaptiveSettings:
    """Keys that sync_type adaptive reads; default_config.yaml explains them."""

    min_consistent_rate: float = 1.1
    min_consistent_rate_at_round: int = 0
    ema_alpha: float = 0.5
    observation_window_size: int = 5
    frequency_increase_ratio: int = 2
    unchanged_round: int = 0


@dataclass(frozen=True)
class Aggregation:
    """The aggregation settings of a job.

    Attributes:
        kind: one of the engine's four algorithms.
        iid_rate: the factor of FedProx's proximal term.
        adaptive: None where every iteration has the same number of steps.
        unit: number of images that count as one in the weighted mean.
    """

    kind: str = FEDAVG
    iid_rate: float = 0.0
    adaptive: AdaptiveSettings | None = None
    unit: int = 1

    @property
    def facts(self) -> AlgorithmFacts:
        """Return the facts of the algorithm with these settings."""
        facts = ALGORITHMS[self.kind]
        if not self.adaptive:
            return facts
        # A silo sends the size of its changes too, and keeps two moving averages and a model.
        return replace(
            facts,
            sends_weights_only=False,
            supports_ranks=False,
            silo_models=facts.silo_models + 3,
            resume_models=facts.resume_models + 2,
        )

    @property
    def server_models(self) -> int:
        """Return how many arrays of the model's size the servers hold and a silo exchanges."""
        return 2 if self.facts.has_controls or self.adaptive else 1

    @property
    def silo_models(self) -> int:
        """Return how many arrays of the model's size a silo keeps in memory for the algorithm."""
        return self.facts.silo_models

    @property
    def resume_models(self) -> int:
        """Return how many arrays of the model's size a state for --resume has, with momentum."""
        return 1 + self.facts.resume_models

    def aspects(self) -> dict[str, object]:
        """Return what silos must agree on, under the same names for every algorithm."""
        algorithm = (self.kind, self.iid_rate if self.kind == FEDPROX else None)
        return {UNIT_ASPECT: self.unit, ALGORITHM_ASPECT: algorithm, SYNC_ASPECT: self.adaptive}

    def server_features(self, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return what the servers' first model holds besides the weights, by name: zeros.

        Scaffold's control variates are not included: a server adds them by itself.
        """
        if not self.adaptive:
            return {}
        return {ABSOLUTE + name: np.zeros_like(array) for name, array in weights.items()}

    def made_for(self, mark: np.ndarray) -> bool:
        """Return whether a model's fingerprint, which ends with `aspects`, names this algorithm."""
        own = fingerprint(self.aspects())
        return mark.size < own.size or abs(abs(float(mark[-2])) - float(own[-2])) < 0.5

    def words(self) -> str:
        """Return the settings as text for a check's report."""
        rate = f" with iid_rate {self.iid_rate}" if self.kind == FEDPROX else ""
        when = "an adaptive" if self.adaptive else "a fixed"
        return f"{self.kind}{rate}, after {when} number of steps"


def aggregation_of(job: JobConfig, config: Any) -> Aggregation:
    """Read the settings from the federation's file and the configuration, and check both together.

    Raises:
        UserError: a key out of range, or a combination that cannot work.
    """
    settings = _adaptive_settings(config)
    adaptive = settings if config.sync_type == "adaptive" else None
    kind, iid_rate = algorithm_in(job)
    if adaptive and kind not in WEIGHTS_ONLY:
        raise UserError(
            f"sync_type is 'adaptive', and aggregation.aggregation_type in {job.path} is {kind!r}: "
            f"the servers average the sizes of changes with {' and '.join(WEIGHTS_ONLY)} only; "
            "choose one of these, or sync_type: fixed"
        )
    return Aggregation(kind, iid_rate, adaptive, config.data_size_unit)


def aggregation_type(job: JobConfig) -> str:
    """Return the job's algorithm; FedAvg where its file names none."""
    return job.get("aggregation.aggregation_type") or FEDAVG


def algorithm_in(job: JobConfig) -> tuple[str, float]:
    """Return the job's algorithm and the factor of FedProx's term, 0 for the others."""
    kind = aggregation_type(job)
    return kind, float(job["aggregation.iid_rate"]) if kind == FEDPROX else 0.0


def _adaptive_settings(config: Any) -> AdaptiveSettings:
    names = [field.name for field in fields(AdaptiveSettings)]
    settings = AdaptiveSettings(**{name: getattr(config, name) for name in names})
    if not 0 < settings.ema_alpha < 1:
        raise UserError(f"ema_alpha is {settings.ema_alpha}, expected more than 0 and less than 1")
    return settings
