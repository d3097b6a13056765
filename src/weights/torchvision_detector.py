"""Convert torchvision's `fasterrcnn_resnet50_fpn` to the detector's names, shapes and classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from src.weights.head_classes import (
    BOX_COLUMNS,
    BOXES,
    CLASSES,
    CLASSES_OF_IDS,
    COLUMNS,
    SCORES,
    require_count,
)
from src.weights.resnet_names import from_torch

BODY = "backbone.body."
RPN = "rpn_with_loss.rpn_convs_list.0."
OFFSETS_BIAS = f"{RPN}rpn_reg.bias"
# Anchors of both detectors: one scale, a multiple of the stride, and ratios of height to width.
ANCHOR_SCALE = 8
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
# Since torchvision 0.13 a convolution with its activation is a sequence: a further ".0" in names.
RENAMED = {
    "backbone.fpn.inner_blocks.": "fpn_ncek.lateral_convs_list.",
    "backbone.fpn.layer_blocks.": "fpn_ncek.fpn_convs_list.",
    "rpn.head.conv.": f"{RPN}rpn_conv.",
    "rpn.head.cls_logits.": f"{RPN}rpn_cls.",
    "rpn.head.bbox_pred.": f"{RPN}rpn_reg.",
    "roi_heads.box_head.fc6.": "rcnn.shared_fc_0.",
    "roi_heads.box_head.fc7.": "rcnn.shared_fc_1.",
    "roi_heads.box_predictor.cls_score.": "rcnn.cls_scores.",
    "roi_heads.box_predictor.bbox_pred.": "rcnn.reg_scores.",
}


def detector_name(name: str) -> str:
    """Return the detector's name for one of torchvision's; others are returned unchanged."""
    if name.startswith(BODY):
        return from_torch(name[len(BODY) :])
    for old, new in RENAMED.items():
        if name.startswith(old):
            module, _, part = name[len(old) :].rpartition(".")
            numbers = module.split(".")
            level = f"{numbers[0]}." if "_blocks" in old else ""
            extra = numbers[1:] if level else numbers
            if all(number in ("", "0") for number in extra):
                return f"{new}{level}{part}"
    return name


def detector_values(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the values by the detector's names; dense weights become (in, out), as it stores them.

    The order of the pooled features, channel, row, column, is the same in both. The detector's
    anchors lie half a stride further right and down, which the bias of the offsets compensates.
    """
    renamed = {detector_name(name): value for name, value in values.items()}
    for name in renamed:
        if name.startswith("rcnn.") and name.endswith(".weight"):
            renamed[name] = np.ascontiguousarray(renamed[name].T)
    bias = renamed.get(OFFSETS_BIAS)
    if bias is not None and bias.shape == (4 * len(ANCHOR_RATIOS),):
        renamed[OFFSETS_BIAS] = bias - half_stride().reshape(-1)
    return renamed


def half_stride() -> np.ndarray:
    """Return half a stride as offsets of each anchor, (A, 4) float32: parts of its sides.

    They are the same on every level, except for the rounding of the anchors' sides to whole pixels.
    """
    roots = np.sqrt(ANCHOR_RATIOS)
    still = np.zeros_like(roots)
    offsets = [0.5 * roots / ANCHOR_SCALE, 0.5 / roots / ANCHOR_SCALE, still, still]
    return np.stack(offsets, axis=1).astype(np.float32)


def order_classes(
    values: dict[str, np.ndarray], classes: Sequence[str] | None
) -> tuple[list[str] | None, list[str]]:
    """Bring the box head's columns into the order of a class list, in place.

    A head of 91 classes is COCO's: a class for each category id, of which 80 are used. The box
    regressor loses the background's columns, which the detector does not have.

    Args:
        values: arrays by the detector's names, dense weights (in, out).
        classes: names in the order of the columns, the background first; None where not known.

    Returns:
        The class names, None where they are not known and the class-dependent tensors had to be
        left out; and the names of what was left out.

    Raises:
        UserError: `classes` has another number of names than the head has classes.
    """
    columns = values[SCORES[1]].shape[-1]
    require_count(classes, columns)
    if classes is None and columns != CLASSES_OF_IDS:
        left_out = [name for name in (*SCORES, *BOXES) if values.pop(name, None) is not None]
        return None, left_out
    kept = list(range(columns)) if classes is not None else COLUMNS
    for name in (*SCORES, *BOXES):
        width = BOX_COLUMNS if name in BOXES else 1
        wanted = kept[1:] if name in BOXES else kept
        places = [column * width + part for column in wanted for part in range(width)]
        values[name] = np.ascontiguousarray(values[name][..., places])
    return list(classes) if classes is not None else list(CLASSES), []
