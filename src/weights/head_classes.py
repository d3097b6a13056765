"""Refit the box head's class-dependent tensors from one list of classes to another.

Their last axis holds the classes: one column for each in `cls_scores`, four in `reg_scores`, which
may lack the background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from src.errors import UserError
from src.model_utils.config import COCO_CLASSES

BOX_COLUMNS = 4
SCORES = ("rcnn.cls_scores.weight", "rcnn.cls_scores.bias")
BOXES = ("rcnn.reg_scores.weight", "rcnn.reg_scores.bias")
CLASS_TENSORS = (*SCORES, *BOXES)


@dataclass
class Refit:
    """Tell what was done with the class-dependent tensors.

    Attributes:
        tensors: names of those that did not fit and were made from the network's own.
        carried: classes whose columns were copied, with the background.
    """

    tensors: list[str] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)


def require_count(classes: Sequence[str] | None, columns: int) -> None:
    """Refuse a list of classes, if given, whose length is not that of the box head.

    Raises:
        UserError: names both numbers.
    """
    if classes is not None and len(classes) != columns:
        raise UserError(
            f"--classes lists {len(classes)} names with the background, the box head has {columns}"
        )


def other_classes(name: str, theirs: Sequence[int], ours: Sequence[int]) -> bool:
    """Tell whether two shapes of the tensor `name` differ only in the number of classes."""
    same_rest = list(theirs[:-1]) == list(ours[:-1]) and len(theirs) == len(ours)
    return name in CLASS_TENSORS and same_rest and list(theirs) != list(ours)


def refit(
    found: dict[str, np.ndarray],
    own: Mapping[str, np.ndarray],
    source: Sequence[str] | None,
    target: Sequence[str],
) -> Refit:
    """Replace in `found` the class-dependent tensors of other classes.

    Columns of classes that both have come from `found`, all others from `own`. Where the source's
    classes are not known, no column is copied, and heads of the same size count as the same.

    Args:
        found: a checkpoint's values by the detector's names; changed in place.
        own: the network's fresh random values of `CLASS_TENSORS`.
        source, target: class names, the background first.
    """
    names = [name for name in CLASS_TENSORS if name in found]
    alien = any(other_classes(name, found[name].shape, own[name].shape) for name in names)
    renamed = source is not None and list(source) != list(target)
    comparable = all(found[name].shape[:-1] == own[name].shape[:-1] for name in names)
    if not names or not comparable or not (alien or renamed):
        return Refit()
    shared = [name for name in target if source is not None and name in source]
    pairs = [(list(source or ()).index(name), list(target).index(name)) for name in shared]
    if len(shared) < 2:  # the background alone says nothing without a class to tell it from
        shared, pairs = [], []
    for name in names:
        found[name] = _columns(name, found[name], own[name], len(source or ()), len(target), pairs)
    return Refit(names, shared)


def _columns(
    name: str,
    theirs: np.ndarray,
    ours: np.ndarray,
    their_classes: int,
    our_classes: int,
    pairs: Sequence[tuple[int, int]],
) -> np.ndarray:
    """Return `ours` with the columns of the paired classes from `theirs`."""
    result = ours.copy()
    width = BOX_COLUMNS if name in BOXES else 1
    skipped_there = their_classes - theirs.shape[-1] // width
    skipped_here = our_classes - ours.shape[-1] // width
    for there, here in pairs:
        a, b = (there - skipped_there) * width, (here - skipped_here) * width
        if a >= 0 and b >= 0:
            result[..., b : b + width] = theirs[..., a : a + width]
    return result


UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
IDS = [number for number in range(1, 91) if number not in UNUSED_IDS]
CLASSES_OF_IDS = 91

# Class names, the background first, and the column of each in a head with a class for every id.
CLASSES = COCO_CLASSES
COLUMNS = [0, *IDS]
