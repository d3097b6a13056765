"""Convert weights of another origin to the detector's names and its BatchNorm epsilon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from src.errors import UserError
from src.weights.files import read_weights
from src.weights.head_classes import (
    BOX_COLUMNS,
    BOXES,
    CLASS_TENSORS,
    CLASSES,
    SCORES,
    require_count,
)
from src.weights.kinds import (
    TORCHVISION_DETECTORS,
    Kind,
    is_dropped,
    recognise,
)
from src.weights.resnet_names import BACKBONE
from src.weights.source import V1, V1_5, Source
from src.weights.torchvision_detector import order_classes

VARIANCE = "moving_variance"


def fold_epsilon(values: dict[str, np.ndarray], trained: float, ours: float) -> int:
    """Change stored variances in place so that epsilon `ours` gives what `trained` gave.

    With stored statistics a BatchNorm is `gamma * (x - mean) / sqrt(variance + eps) + beta`, so
    replacing the variance by `variance + trained - ours` is exact. Where that would be below 0, the
    variance becomes 0 and gamma is scaled to make up for the rest.

    Args:
        values: arrays by the detector's names.
        trained, ours: epsilons of the training and of the detector.

    Returns:
        The number of channels whose gamma was changed.

    Raises:
        UserError: a variance is negative, or its sum with `trained` is not above 0.
    """
    rescaled = 0
    for name in [name for name in values if name.endswith(VARIANCE)]:
        total = values[name].astype(np.float64) + trained
        if (values[name] < 0).any() or not (total > 0).all():
            raise UserError(f"{name} has a value that is no variance with epsilon {trained:g}")
        folded = np.maximum(total - ours, 0)
        values[name] = folded.astype(np.float32)
        low = total < ours
        if low.any():
            gamma = name[: -len(VARIANCE)] + "gamma"
            factor = np.sqrt(np.where(low, ours / total, 1))
            values[gamma] = (values[gamma] * factor).astype(np.float32)
            rescaled += int(low.sum())
    return rescaled


DETECTOR_EPS = 1e-5  # that of src/FasterRcnn/resnet.py, which needs MindSpore; a test compares them
Shape = tuple[int, ...]


@dataclass
class Converted:
    """Hold the result of a conversion.

    Attributes:
        kind: the recognised kind.
        source: the record for the checkpoint.
        values: float32 arrays by the detector's names.
        left_out: names, in the source, of tensors that the detector does not have.
        head_left_out: the detector's names of class-dependent tensors that were left out because
            their classes are not known.
        rescaled: number of channels whose gamma was changed for the epsilon.
        assumed: what was assumed for this kind, in words; empty where the user has given it.
    """

    kind: Kind
    source: Source
    values: dict[str, np.ndarray]
    left_out: list[str] = field(default_factory=list)
    head_left_out: list[str] = field(default_factory=list)
    rescaled: int = 0
    assumed: str = ""


def convert(
    path: Path,
    shapes: Mapping[str, Shape],
    backbone: str | None = None,
    bn_eps: float | None = None,
    classes: Sequence[str] | None = None,
) -> Converted:
    """Read the file at `path`, recognise its kind, and convert it to the detector.

    Args:
        shapes: shapes of the detector's parameters by name; those of `CLASS_TENSORS` may differ.
        backbone: value of the key `backbone`, where the weights have their stride; None uses what
            is usual for their kind.
        bn_eps: epsilon of BatchNorm in their training; None likewise.
        classes: names of a whole detector's classes in its order, the background first; None uses
            COCO's where the number of classes is COCO's.

    Raises:
        UserError: not a file of weights, not a ResNet-50, or a fact that the file does not tell and
            that is not given.
    """
    given = read_weights(path)
    kind = recognise(given, str(path))
    told = bn_eps if kind.whole else backbone
    assumed = kind.assumed if told is None else ""
    backbone = backbone or kind.backbone or _ask_backbone(path)
    bn_eps = kind.bn_eps if bn_eps is None else bn_eps
    left_out = [name for name in given if is_dropped(name, kind.dropped)]
    for name in left_out:
        del given[name]
    values = kind.renamed(given)
    known = None
    head_left_out: list[str] = []
    _require_parts(path, kind, values, shapes)
    if kind.whole:
        known, head_left_out = _classes(kind, values, classes)
    elif classes is not None:
        raise UserError(f"--classes: {path} is a {kind.title}, which has no box head")
    try:
        rescaled = fold_epsilon(values, bn_eps, DETECTOR_EPS)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    source = Source(kind.title, backbone, bn_eps, known)
    return Converted(kind, source, values, left_out, head_left_out, rescaled, assumed)


def _ask_backbone(path: Path) -> str:
    raise UserError(
        f"{path}: a MindSpore detector does not say where its backbone strides; give "
        f"--backbone={V1} (stride on the 1x1, what upstream's federated example trains) or "
        f"--backbone={V1_5} (on the 3x3). A checkpoint of this suite needs no conversion: give it "
        "as --pre_trained"
    )


def _require_parts(
    path: Path, kind: Kind, values: Mapping[str, np.ndarray], shapes: Mapping[str, Shape]
) -> None:
    """Check that names and shapes are a ResNet-50's, for a whole detector all of its parameters.

    Raises:
        UserError: names the first parameter that is missing, of another shape, or unknown.
    """
    wanted = {name for name in shapes if kind.whole or name.startswith(BACKBONE)}
    for name in sorted(wanted ^ set(values)):
        what = "lacks" if name in wanted else "has"
        raise UserError(
            f"{path}: taken for a {kind.title}, but it {what} {name}: another network, or of "
            "another depth, which --backbone names"
        )
    for name, value in values.items():
        compared = -1 if name in CLASS_TENSORS else None
        if tuple(value.shape[:compared]) != tuple(shapes[name][:compared]):
            raise UserError(
                f"{path}: taken for a {kind.title}, but {name} has shape {list(value.shape)} in "
                f"place of {list(shapes[name])}: another network"
            )


def _classes(
    kind: Kind, values: dict[str, np.ndarray], classes: Sequence[str] | None
) -> tuple[list[str] | None, list[str]]:
    """Return the head's class names, None if not known, and tensors that had to be left out."""
    if kind in TORCHVISION_DETECTORS:
        _require_head(values)
        return order_classes(values, classes)
    count = values[SCORES[1]].shape[-1]
    if classes is None and count == len(CLASSES):
        classes = CLASSES
    require_count(classes, count)
    for name in BOXES:
        if values[name].shape[-1] == BOX_COLUMNS * count:
            values[name] = np.ascontiguousarray(values[name][..., BOX_COLUMNS:])
    _require_head(values, background=False)
    return list(classes) if classes is not None else None, []


def _require_head(values: Mapping[str, np.ndarray], background: bool = True) -> None:
    """Check that scores and boxes have the same number of classes.

    Raises:
        UserError: they do not.
    """
    count = values[SCORES[1]].shape[-1]
    expected = BOX_COLUMNS * (count if background else count - 1)
    shapes = [values[name].shape[-1] for name in (*SCORES, *BOXES)]
    if shapes != [count, count, expected, expected]:
        raise UserError(f"the box head's sizes {shapes} are not those of one list of classes")
