"""Faster R-CNN with a ResNet-50 backbone and a feature pyramid, as MindSpore cells.

`from src.FasterRcnn import RPN, Rcnn` works as in upstream's example. Each part is imported on
first access, since MindSpore takes seconds to import and some modules here do without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "AnchorGenerator": "anchor_generator",
    "BboxAssignSample": "bbox_assign_sample",
    "BboxAssignSampleForRcnn": "bbox_assign_sample_stage2",
    "FasterRcnn_Infer": "faster_rcnn_resnet",
    "Faster_Rcnn_Resnet": "faster_rcnn_resnet",
    "FeatPyramidNeck": "fpn_neck",
    "Proposal": "proposal_generator",
    "RPN": "rpn",
    "Rcnn": "rcnn",
    "ResNetFea": "resnet",
    "ResidualBlockUsing": "resnet",
    "SingleRoIExtractor": "roi_align",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
