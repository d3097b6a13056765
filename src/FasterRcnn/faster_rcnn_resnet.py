"""The detector with the backbone that `config.backbone` names."""

from src.FasterRcnn.faster_rcnn import Faster_Rcnn, FasterRcnn_Infer

__all__ = ["FasterRcnn_Infer", "Faster_Rcnn_Resnet"]


class Faster_Rcnn_Resnet(Faster_Rcnn):
    """Build Faster R-CNN ResNet-50 FPN; arguments and results are those of `Faster_Rcnn`."""
