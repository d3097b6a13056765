"""ResNet-50 v1 backbone: as in `resnet.py`, with the stride on the first 1x1 convolution."""

from src.FasterRcnn.resnet import (
    ResidualBlockUsing,
    ResNetFea,
    _BatchNorm2dInit,
    _conv,
    weight_init_ones,
)

__all__ = ["ResNetFea", "ResidualBlockUsing_V1", "_BatchNorm2dInit", "_conv", "weight_init_ones"]


class ResidualBlockUsing_V1(ResidualBlockUsing):
    """Apply a bottleneck block whose first 1x1 convolution has the stride."""

    @staticmethod
    def strides(stride: int) -> tuple[int, int]:
        """Return the strides of the first 1x1 and of the 3x3 convolution."""
        return stride, 1
