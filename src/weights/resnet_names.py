"""Names in checkpoints: which parameter of the detector one of a ResNet-50 classifier becomes."""

from __future__ import annotations

import re

BACKBONE = "backbone."
# Classifier, optimiser state and counters of a ResNet-50 checkpoint; they have no place here.
DROPPED = ("end_point", "global_step", "learning_rate", "moments", "momentum")
RENAMED = {
    "down_sample_layer.0.weight": "conv_down_sample.weight",
    "down_sample_layer.1.": "bn_down_sample.",
}


def map_name(name: str) -> str | None:
    """The detector's name for a parameter of a ResNet-50 checkpoint; None for one to drop."""
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
    """`layer2.0.downsample.1.running_var` to `backbone.layer2.0.bn_down_sample.moving_variance`."""
    name = name.replace("downsample.0.", "conv_down_sample.")
    name = name.replace("downsample.1.", "bn_down_sample.")
    module, _, part = name.rpartition(".")
    if re.search(r"(^|\.)bn(\d|_down_sample)$", module):
        part = NORM_PARTS.get(part, part)
    return f"{BACKBONE}{module}.{part}"


def from_mindspore(name: str) -> str:
    """A name of ModelZoo's or MindCV's; a prefix `backbone.` may be there already."""
    return map_name(name.replace("down_sample.", "down_sample_layer.")) or name
