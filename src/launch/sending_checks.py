"""What leaves the silos of a job, checked before the start and told."""

from __future__ import annotations

from typing import Any

from src.federated.privacy import privacy_settings
from src.job.checks import WARN, Check, Finding
from src.job.job_config import JobConfig
from src.launch.detector_size import FLOAT_BYTES, count_values, federated_shapes, trained_shapes


def federated_check(config: Any) -> Check:
    """Whether local_params names parts of the detector, and what is left to federate."""
    return Check("local_params", lambda: _federated(config))


def privacy_check(job: JobConfig, config: Any) -> Check:
    """Whether the keys of differential privacy make sense for the job."""
    return Check("privacy", lambda: _privacy(job, config))


def _federated(config: Any) -> str:
    shapes = federated_shapes(config)
    values = count_values(shapes)
    of = f"{len(shapes)} of {len(trained_shapes(config))} trained weights are federated"
    return f"{of}, {values:,} values, {FLOAT_BYTES * values / 1e6:.1f} MB"


def _privacy(job: JobConfig, config: Any) -> str | Finding:
    settings = privacy_settings(job, config)
    if settings is None:
        return "dp_clip_norm is 0: weights leave as they are"
    if settings.noise_multiplier == 0:
        text = "dp_noise_multiplier is 0: what leaves is clipped, but not private; set it too"
        return Finding(WARN, "privacy", text)
    deviation = settings.noise_multiplier * settings.clip_norm
    until = f", until epsilon is {settings.max_epsilon:g}" if settings.max_epsilon else ""
    return (
        f"updates are clipped to {settings.clip_norm:g} and get noise of standard deviation "
        f"{deviation:g} on each value{until}"
    )
