"""Record the origin of a converted checkpoint, and check whether a detector fits it.

The record is one more entry of the checkpoint: JSON text as bytes. It holds two facts that shapes
do not show: where the backbone has its stride, and which classes the box head knows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from src.errors import UserError
from src.files import parsed_json
from src.model_utils.config import BACKBONES, backbone_of

RECORD_NAME = "suite.source"
# Prefix of all entries that this suite adds to the parameters.
OWN_ENTRIES = "suite."
# Prefixes of what MindSpore's SGD and Momentum keep for each weight.
OPTIMISER_SLOTS = ("accum.", "moments.")
# Values of the key `backbone`, by the stride of a block: on the 3x3, or on the 1x1.
V1_5, V1 = "resnet_v1.5_50", "resnet_v1_50"
CONVERT = "python -m src.convert_checkpoint --ckpt_file={}"


@dataclass(frozen=True)
class Source:
    """Describe where weights come from.

    Attributes:
        kind: what was converted, in words.
        backbone: a value of the key `backbone`.
        bn_eps: epsilon of BatchNorm in training; the checkpoint's values fit the detector's.
        classes: classes of the box head, the background first; None where they are not known or it
            is not a whole detector.
    """

    kind: str
    backbone: str
    bn_eps: float
    classes: list[str] | None = None

    def packed(self) -> np.ndarray:
        """Return the record as an entry of a checkpoint, (N,) uint8."""
        return np.frombuffer(json.dumps(asdict(self)).encode(), np.uint8)


def unpack(record: np.ndarray | bytes | None, path: str) -> Source | None:
    """Read the source from an entry of a checkpoint; None without one.

    Raises:
        UserError: the entry is corrupt.
    """
    if record is None:
        return None
    try:
        source = Source(**parsed_json(bytes(record).decode()))
        names = source.classes is None or all(isinstance(name, str) for name in source.classes)
        if source.backbone not in BACKBONES or not names:
            raise ValueError("a value of the wrong kind")
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: its entry {RECORD_NAME} is corrupt; convert it again") from error
    return source


def of_upstreams_worker(names: Iterable[str]) -> bool:
    """Return whether a checkpoint with these names is one of upstream's federated workers.

    They hold a whole detector and its optimiser's state. This suite saves only the detector, with
    entries of its own. A classifier with an optimiser is not such a checkpoint.
    """
    known = list(names)
    return (
        not any(name.startswith(OWN_ENTRIES) for name in known)
        and any(name.startswith("rcnn.") for name in known)
        and any(name.startswith(OPTIMISER_SLOTS) for name in known)
    )


def require_backbone(
    source: Source | None, names: Iterable[str], backbone: str, path: str | Path, key: str = ""
) -> None:
    """Refuse weights that were trained with the stride elsewhere; shapes do not show it.

    Args:
        source: what a converted checkpoint says about its origin.
        names: names of the checkpoint's entries.
        backbone: backbone of the detector that is to load them.
        path: path of the checkpoint, for the message.
        key: text that the message begins with.

    Raises:
        UserError: names both backbones.
    """
    on_1x1 = backbone_of(backbone).stride_on_1x1
    if source is not None and backbone_of(source.backbone).stride_on_1x1 != on_1x1:
        raise UserError(
            f"{key}{path}: was converted as {source.backbone} ({source.kind}), this detector's "
            f"backbone is {backbone}: set backbone: {source.backbone}, or convert it again with "
            f"--backbone={backbone} if that is what it was trained as"
        )
    # Upstream's federated example builds this one, whatever its file says.
    if backbone != V1 and of_upstreams_worker(names):
        raise UserError(
            f"{key}{path}: is a checkpoint of upstream's workers (it holds their optimiser's "
            f"state), which train {V1} whatever their configuration says, and this detector's "
            f"backbone is {backbone}: set backbone: {V1}; for a detector that was trained as "
            f"{backbone} elsewhere give what {CONVERT.format(path)} --backbone={backbone} makes"
        )


def require_classes(source: Source | None, classes: Sequence[str], path: str) -> None:
    """Refuse a trained box head of other classes, or of the same classes in another order.

    Raises:
        UserError: names the first class that differs.
    """
    if source is None or source.classes is None or source.classes == list(classes):
        return
    pairs = [*zip(source.classes, classes), (f"{len(source.classes)} names", f"{len(classes)}")]
    theirs, ours = next(pair for pair in pairs if pair[0] != pair[1])
    raise UserError(
        f"{path}: its box head knows other classes than coco_classes: {theirs!r} where "
        f"coco_classes has {ours!r}; give the configuration of its classes"
    )
