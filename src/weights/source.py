"""What a converted checkpoint says of its origin, and whether a detector fits it.

The record is one more entry of the checkpoint: JSON text as bytes. Two things that shapes do not
tell stand in it: where the backbone strides, and which classes the box head knows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from src.errors import UserError

RECORD_NAME = "suite.source"
# How all entries begin that this suite adds to the parameters.
OWN_ENTRIES = "suite."


@dataclass(frozen=True)
class Source:
    """Where weights come from.

    Attributes:
        kind: what was converted, in words.
        backbone: a value of the key `backbone`.
        bn_eps: epsilon of BatchNorm in training; the checkpoint's values are for the detector's.
        classes: of the box head, the background first; None: not a whole detector, or not known.
    """

    kind: str
    backbone: str
    bn_eps: float
    classes: list[str] | None = None

    def packed(self) -> np.ndarray:
        """As an entry of a checkpoint, (N,) uint8."""
        return np.frombuffer(json.dumps(asdict(self)).encode(), np.uint8)


def unpack(record: np.ndarray | bytes | None, path: str) -> Source | None:
    """The source from an entry of a checkpoint; None where there is none.

    Raises:
        UserError: the entry is spoilt.
    """
    if record is None:
        return None
    try:
        source = Source(**json.loads(bytes(record).decode()))
        names = source.classes is None or all(isinstance(name, str) for name in source.classes)
        if not isinstance(source.backbone, str) or not names:
            raise ValueError("a value of the wrong kind")
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: its entry {RECORD_NAME} is spoilt; convert it again") from error
    return source


def strides_on_1x1(backbone: str) -> bool:
    """Return whether the first 1x1 convolution of a block has the stride, in place of the 3x3."""
    return backbone == "resnet_v1_50"


def require_backbone(source: Source | None, backbone: str, path: str) -> None:
    """Refuse weights that were trained with the stride elsewhere; shapes do not tell.

    Raises:
        UserError: names both.
    """
    if source is not None and strides_on_1x1(source.backbone) != strides_on_1x1(backbone):
        raise UserError(
            f"{path}: was converted as {source.backbone} ({source.kind}), this detector's backbone "
            f"is {backbone}: set backbone: {source.backbone}, or convert it again with "
            f"--backbone={backbone} if that is what it was trained as"
        )


def require_classes(source: Source | None, classes: Sequence[str], path: str) -> None:
    """Refuse a trained box head of other classes, or of the same in another order.

    Raises:
        UserError: names the first that differs.
    """
    if source is None or source.classes is None or source.classes == list(classes):
        return
    pairs = [*zip(source.classes, classes), (f"{len(source.classes)} names", f"{len(classes)}")]
    theirs, ours = next(pair for pair in pairs if pair[0] != pair[1])
    raise UserError(
        f"{path}: its box head knows other classes than coco_classes: {theirs!r} where "
        f"coco_classes has {ours!r}; give the configuration of its classes"
    )
