"""The kinds of weights that can be converted: how each is recognised and what is known about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Callable

import numpy as np

from src.errors import UserError
from src.weights.resnet_names import COUNTER, from_mindspore, from_torch
from src.weights.source import OWN_ENTRIES, RECORD_NAME, V1_5
from src.weights.torchvision_detector import detector_values

Values = dict[str, np.ndarray]

TORCH_POOLING = (
    "the stem's pooling is padded at the bottom and right only, PyTorch's on all sides: features "
    "are those of an image moved by 2 pixels (training takes this up)"
)
MODELZOO_PADDING = (
    "convolutions of stride 2 are padded on all sides, ModelZoo's more at the bottom and right: "
    "features are those of an image moved by some pixels (training takes this up)"
)
INPUT = (
    "images are RGB, less the mean 123.675, 116.28, 103.53, over 58.395, 57.12, 57.375: right for "
    "weights trained with ImageNet's usual normalisation"
)


@dataclass(frozen=True)
class Kind:
    """Describe one kind of file.

    Attributes:
        title: name of the kind in words.
        renamed: returns the values by the detector's names.
        bn_eps: epsilon of BatchNorm that this kind is trained with.
        backbone: where it has its stride; None: both exist, and the file does not say which.
        whole: a detector, else a classifier.
        dropped: beginnings and ends of names that the detector does not have.
        differs: what stays different, a line each.
        assumed: what the file does not say, the assumption, and the flag for the other case:
            --bn_eps for a detector, --backbone for a classifier.
    """

    title: str
    renamed: Callable[[Values], Values]
    bn_eps: float
    backbone: str | None
    whole: bool = False
    dropped: tuple[str, ...] = ()
    differs: tuple[str, ...] = (INPUT,)
    assumed: str = (
        "the stride is on the 3x3 (v1.5); for weights with it on the 1x1, Caffe's, give "
        "--backbone=resnet_v1_50"
    )


def _each(rename: Callable[[str], str]) -> Callable[[Values], Values]:
    return lambda values: {rename(name): value for name, value in values.items()}


def _neck_renamed(values: Values) -> Values:
    return {name.replace("fpn_neck.", "fpn_ncek."): value for name, value in values.items()}


OPTIMISER = ("global_step", "learning_rate", "moments", "momentum", "accum.", "stat.", "epoch_num")
TORCH_RESNET = Kind(
    "PyTorch ResNet-50 (torchvision, timm)",
    _each(from_torch),
    1e-5,
    V1_5,
    dropped=("fc.", COUNTER),
    differs=(TORCH_POOLING, INPUT),
)
MODELZOO_RESNET = Kind(
    "MindSpore ModelZoo ResNet-50",
    _each(from_mindspore),
    1e-4,
    V1_5,
    dropped=("end_point.", "scale_sense", "current_iterator_step", *OPTIMISER),
    differs=(MODELZOO_PADDING, INPUT),
)
MINDCV_RESNET = Kind(
    "MindCV ResNet-50", _each(from_mindspore), 1e-5, V1_5, dropped=("classifier.", *OPTIMISER)
)
TORCHVISION_DETECTOR = Kind(
    "torchvision fasterrcnn_resnet50_fpn",
    detector_values,
    0.0,
    V1_5,
    whole=True,
    dropped=(COUNTER,),
    differs=(
        TORCH_POOLING,
        "boxes end at the pixel x2, torchvision's at the edge x2: widths differ by 1 pixel",
        "images are scaled to img_width x img_height, torchvision's shorter side to 800",
        INPUT,
    ),
    assumed="BatchNorm's epsilon is 0, as in torchvision's COCO weights and what is fine-tuned "
    "from them; for a detector that was trained from a classifier give --bn_eps=1e-5",
)
# Frozen statistics come without counters; a file with them is of BatchNorm2d and its epsilon.
UNFROZEN_DETECTOR = replace(TORCHVISION_DETECTOR, bn_eps=1e-5, assumed="")
TORCHVISION_DETECTORS = (TORCHVISION_DETECTOR, UNFROZEN_DETECTOR)
MINDSPORE_DETECTOR = Kind(
    "MindSpore Faster R-CNN ResNet-50 FPN (upstream)",
    _neck_renamed,
    1e-5,
    None,
    whole=True,
    dropped=(*OPTIMISER, OWN_ENTRIES),
    assumed="",
)


def recognise(values: Mapping[str, np.ndarray], path: str) -> Kind:
    """Return the kind of weights by their names.

    Raises:
        UserError: no known kind, or a file that was converted before.
    """
    if RECORD_NAME in values:
        raise UserError(f"{path}: is converted already; give it as --pre_trained")
    if "backbone.body.conv1.weight" in values:
        counted = any(name.endswith(COUNTER) for name in values)
        return UNFROZEN_DETECTOR if counted else TORCHVISION_DETECTOR
    if "backbone.conv1.weight" in values and "backbone.bn1.running_mean" not in values:
        if any(name.startswith(("fpn_ncek.", "fpn_neck.")) for name in values):
            return MINDSPORE_DETECTOR
        return MODELZOO_RESNET
    if "conv1.weight" in values and "bn1.running_mean" in values:
        return TORCH_RESNET
    if "conv1.weight" in values and "bn1.moving_mean" in values:
        mindcv = "layer1.0.down_sample.0.weight" in values
        return MINDCV_RESNET if mindcv else MODELZOO_RESNET
    raise UserError(
        f"{path}: not recognised; expected a ResNet-50 of torchvision, timm, ModelZoo or MindCV, "
        "torchvision's fasterrcnn_resnet50_fpn or upstream's MindSpore detector. Its names: "
        f"{_examples(list(values))}"
    )


def is_dropped(name: str, dropped: Sequence[str]) -> bool:
    """Tell whether a name in the source begins or ends with one of `dropped`."""
    return name.startswith(tuple(dropped)) or name.endswith(tuple(dropped))


def _examples(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
