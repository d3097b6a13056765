"""A few numbers that tell whether two silos train the same thing.

Not everything that must agree travels: frozen tensors, the class list, the image size. Each such
aspect becomes one whole number; together they are a small float32 feature that the servers hold
beside the weights and that every silo sends unchanged. A mean of equal numbers is that number up
to rounding, so a silo that pulls the model and rounds can name what differs. Every checkpoint of a
job holds it too, so that whoever loads one can name what it was trained with otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import UserError
from src.weights.source import CONVERT, V1, V1_5

FEATURE_NAME = "suite.fingerprint"

# Keys of the configuration without which an average, or a detector's boxes, mean nothing.
SHARED_KEYS = ("backbone", "coco_classes", "img_width", "img_height", "anchor_scales")
LOCAL_ASPECT = "local_params"
FROZEN_ASPECT = "frozen weights (pre_trained, seed)"
ALGORITHM_ASPECT = "aggregation (the federation's file)"
SYNC_ASPECT = "sync_type and its keys"
# Of a detector's job, in the order of its fingerprint.
ASPECTS = (*SHARED_KEYS, LOCAL_ASPECT, FROZEN_ASPECT, ALGORITHM_ASPECT, SYNC_ASPECT)

# The weighted mean of S equal values v is off by about S * v * 2**-24: with v below 2**16 and a
# hundred silos less than half, so rounding gives v back.
_VALUES = 65521


def fingerprint(aspects: Mapping[str, object]) -> np.ndarray:
    """One whole number in 1 to 65521 for the aspects' names, then one for each of them in order.

    Args:
        aspects: name -> anything whose `repr` is the same exactly when the aspect is: a string,
            a number, a list of them; `digest` of arrays.

    Returns:
        float32, 1-D, one longer than `aspects`.
    """
    numbers = [_number(repr(list(aspects))), *(_number(repr(value)) for value in aspects.values())]
    return np.array(numbers, np.float32)


def differing(names: Sequence[str], mine: np.ndarray, theirs: np.ndarray) -> list[str]:
    """The aspects whose numbers differ, by name; [] where the fingerprints agree.

    Args:
        names: the aspects' names, as given to `fingerprint`.
        theirs: as the servers returned it, open or not.
    """
    theirs = np.abs(np.asarray(theirs, np.float64).reshape(-1))
    if theirs.size != mine.size or not np.isfinite(theirs).all():
        return ["version of this software"]
    different = np.abs(theirs - mine.astype(np.float64)) > 0.5
    if different[0]:
        return ["version of this software"]
    return [name for name, differs in zip(names, different[1:]) if differs]


def opened(mark: np.ndarray) -> np.ndarray:
    """Return the fingerprint of an initial model that was made without a checkpoint."""
    return -np.abs(mark)


def is_open(mark: np.ndarray) -> bool:
    """Return whether a fingerprint is that of a model that was made without a checkpoint."""
    return bool(np.asarray(mark).reshape(-1)[:1].sum() < 0)


def same_mark(mark: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two fingerprints agree in all aspects, open or not."""
    return mark.size == other.size and bool(np.abs(np.abs(mark) - np.abs(other)).max() < 0.5)


def key_aspects(config: Any) -> dict[str, object]:
    """The aspects that are keys of the configuration: what a detector finds depends on them."""
    return {key: getattr(config, key) for key in SHARED_KEYS}


def unlike_aspects(known: Mapping[str, object], mark: np.ndarray) -> list[str]:
    """Which of `known` are others than in the job of a detector; [] for other versions' marks.

    Args:
        known: some of `ASPECTS` by name; nothing is said of the others.
        mark: the fingerprint in a checkpoint of that detector.
    """
    found = differing(ASPECTS, fingerprint({name: known.get(name) for name in ASPECTS}), mark)
    return [name for name in found if name in known]


def require_trainable(
    config: Any, mark: np.ndarray | None, classes: int | None, path: Path, key: str = ""
) -> None:
    """Refuse to train on with weights that mean something else under `config`.

    The image size may differ, and so may the number of classes: the box head is then drawn again.

    Args:
        config: of the detector to train.
        mark: the fingerprint in the checkpoint; None where there is none.
        classes: columns of the checkpoint's class scores; None where it has no box head.
        path: of the checkpoint, for the message.
        key: what the message begins with.

    Raises:
        UserError: another backbone, other anchors, or as many classes with other names.
    """
    if mark is None:
        return
    known = {key: getattr(config, key) for key in ("backbone", "anchor_scales")}
    if classes == config.num_classes:
        known["coco_classes"] = config.coco_classes
    other = V1 if config.backbone == V1_5 else V1_5
    words = {
        "backbone": f"another backbone than {config.backbone} (set backbone: {other})",
        "anchor_scales": f"other anchor_scales than {config.anchor_scales} (set them as they were)",
        "coco_classes": f"{classes} classes of other names, or in another order (give coco_classes "
        f"as it was; to train it for others give --classes=<its names> to "
        f"{CONVERT.format(path)} --backbone={config.backbone})",
    }
    unlike = unlike_aspects(known, mark)
    if unlike:
        found = ", and with ".join(words[name] for name in unlike)
        raise UserError(f"{key}{path}: was trained with {found}")


def common_factor(mine: np.ndarray, theirs: np.ndarray) -> float:
    """By what the servers' fingerprint is this silo's multiplied; 1 where it is another one.

    Anything but 1 tells that the servers' mean of equal numbers is none, and so no mean at all.
    """
    theirs = np.asarray(theirs, np.float64).reshape(-1)
    if theirs.size != mine.size or not np.isfinite(theirs).all():
        return 1.0
    factors = theirs / mine
    middle = float(np.median(factors))
    multiplied = middle > 0 and np.abs(factors / middle - 1).max() < 1e-4
    return middle if multiplied and abs(middle - 1) > 1e-3 else 1.0


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """A hexadecimal digest of names, shapes, types and values, in the order of the names."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        state.update(f"{name} {array.dtype.str} {array.shape}".encode())
        state.update(array.reshape(-1).data.cast("B"))
    return state.hexdigest()


def _number(text: str) -> int:
    value = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(value, "little") % _VALUES + 1
