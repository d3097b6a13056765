"""Map parameter names of ResNet-50 classifiers to those of the detector."""

from __future__ import annotations

import re

BACKBONE = "backbone."
# Classifier, optimiser state and counters of a ResNet-50 checkpoint; the detector has none of them.
DROPPED = ("end_point", "global_step", "learning_rate", "moments", "momentum")
RENAMED = {
    "down_sample_layer.0.weight": "conv_down_sample.weight",
    "down_sample_layer.1.": "bn_down_sample.",
}


def map_name(name: str) -> str | None:
    """Return the detector's name for a parameter of a ResNet-50 checkpoint; None to drop it."""
    if name.startswith(DROPPED):
        return None
    if not name.startswith(BACKBONE):
        name = BACKBONE + name
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


NORM_PARTS = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
COUNTER = "num_batches_tracked"


def from_torch(name: str) -> str:
    """Return the detector's name for one of a PyTorch ResNet-50.

    `layer2.0.downsample.1.running_var` is `backbone.layer2.0.bn_down_sample.moving_variance`.
    """
    name = name.replace("downsample.0.", "conv_down_sample.")
    name = name.replace("downsample.1.", "bn_down_sample.")
    module, _, part = name.rpartition(".")
    if re.search(r"(^|\.)bn(\d|_down_sample)$", module):
        part = NORM_PARTS.get(part, part)
    return f"{BACKBONE}{module}.{part}"


def from_mindspore(name: str) -> str:
    """Return the detector's name for one of ModelZoo or MindCV, with or without `backbone.`."""
    return map_name(name.replace("down_sample.", "down_sample_layer.")) or name
