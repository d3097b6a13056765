"""The settings of differential privacy, checked, and with which algorithms they go."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from src.errors import UserError
from src.federated.aggregation import FEDAVG, FEDPROX, aggregation_type
from src.job.job_config import JobConfig

# What leaves the silo under these is the weights alone.
ALGORITHMS = (FEDAVG, FEDPROX)


@dataclass(frozen=True)
class PrivacySettings:
    """The keys dp_clip_norm, dp_noise_multiplier, dp_delta and dp_max_epsilon, 0 for no limit."""

    clip_norm: float
    noise_multiplier: float
    delta: float
    max_epsilon: float = 0.0


def privacy_settings(job: JobConfig, config: Any) -> PrivacySettings | None:
    """The checked settings; None where dp_clip_norm is 0, which is off.

    Raises:
        UserError: values that make no sense, or a job in which more than weights leaves a silo.
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
            "update of any size; set dp_clip_norm too, or neither"
        )
    if most > 0 and noise == 0:
        raise UserError(
            f"dp_max_epsilon is {most} and dp_noise_multiplier {noise}: without noise epsilon is "
            "infinite at the first upload; set dp_clip_norm and dp_noise_multiplier too, or leave "
            "dp_max_epsilon at 0"
        )
    if clip == 0:
        return None
    algorithm = aggregation_type(job)
    if algorithm not in ALGORITHMS:
        raise UserError(
            f"dp_clip_norm is {clip} and aggregation_type {algorithm}, expected "
            f"{' or '.join(ALGORITHMS)}: with it more than noised weights would leave the silo"
        )
    if config.sync_type != "fixed":
        raise UserError(
            f"dp_clip_norm is {clip} and sync_type {config.sync_type}, expected fixed: otherwise "
            "gradients without noise would leave the silo too"
        )
    return PrivacySettings(clip, noise, delta, most)
