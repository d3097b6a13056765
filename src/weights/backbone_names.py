"""Names of a ResNet-50's parameters: PyTorch's (torchvision, timm), ModelZoo's, MindCV's."""

from __future__ import annotations

import re

from src.weights.checkpoint_names import BACKBONE, map_name

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
