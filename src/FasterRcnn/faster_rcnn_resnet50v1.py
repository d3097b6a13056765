"""The detector with ResNet-50 v1 (stride on the 1x1), whatever `config.backbone` says."""

from __future__ import annotations

from src.FasterRcnn import faster_rcnn
from src.model_utils.config import Config


class Faster_Rcnn_Resnet(faster_rcnn.Faster_Rcnn):
    """Build Faster R-CNN ResNet-50 v1 FPN; arguments and results are those of `Faster_Rcnn`."""

    def __init__(self, config: Config):
        super().__init__(config, backbone="resnet_v1_50")


class FasterRcnn_Infer(faster_rcnn.FasterRcnn_Infer):
    """Return only detections, with this module's network."""

    def __init__(self, config: Config, network: faster_rcnn.Faster_Rcnn | None = None):
        super().__init__(config, network or Faster_Rcnn_Resnet(config))
