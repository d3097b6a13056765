"""Names in checkpoints: which parameter of the detector one of a ResNet-50 classifier becomes."""

from __future__ import annotations

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
