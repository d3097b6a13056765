"""ResNet-50 v1.5 (He et al., 2015; stride on the 3x3 convolution) with frozen statistics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn, ops

from src.FasterRcnn.cpu.convolution import Conv3x3

BN_EPS = 1e-5


def weight_init_ones(shape: Sequence[int]) -> Tensor:
    """Return a constant 0.01 of the given shape, float32: a placeholder until weights are set."""
    return Tensor(np.full(shape, 0.01, dtype=np.float32))


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int = 0,
    pad_mode: str = "pad",
) -> nn.Conv2d:
    """Make a convolution without bias."""
    shape = (out_channels, in_channels, kernel_size, kernel_size)
    if kernel_size == 3 and stride == 1 and padding == 1:
        return Conv3x3(in_channels, out_channels, weight_init=weight_init_ones(shape))
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        pad_mode=pad_mode,
        padding=padding,
        weight_init=weight_init_ones(shape),
    )


def _BatchNorm2dInit(
    out_chls: int, momentum: float = 0.1, affine: bool = True, use_batch_statistics: bool = True
) -> nn.BatchNorm2d:
    """Make a batch normalisation, the identity until weights are set."""
    return nn.BatchNorm2d(
        out_chls,
        eps=BN_EPS,
        momentum=momentum,
        affine=affine,
        use_batch_statistics=use_batch_statistics,
    )


class ResidualBlockUsing(nn.Cell):
    """Apply a bottleneck block: 1x1, 3x3, 1x1 and a shortcut; the 3x3 has the stride.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; the inner convolutions have a quarter.
        stride: stride of the block.
        down_sample: make the shortcut a strided 1x1 convolution, else the identity.
        momentum: momentum of the moving statistics; it matters with `training` only.
        training: normalise with each batch's statistics; False uses the stored ones.
        weights_update: False freezes the block.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        down_sample: bool = False,
        momentum: float = 0.1,
        training: bool = False,
        weights_update: bool = False,
    ):
        super().__init__()
        inner = out_channels // self.expansion
        stride_1x1, stride_3x3 = self.strides(stride)

        def norm(channels: int) -> nn.BatchNorm2d:
            return _BatchNorm2dInit(channels, momentum, use_batch_statistics=training)

        self.conv1 = _conv(in_channels, inner, kernel_size=1, stride=stride_1x1)
        self.bn1 = norm(inner)
        self.conv2 = _conv(inner, inner, kernel_size=3, stride=stride_3x3, padding=1)
        self.bn2 = norm(inner)
        self.conv3 = _conv(inner, out_channels, kernel_size=1)
        self.bn3 = norm(out_channels)
        self.relu = ops.ReLU()
        self.down_sample = down_sample
        if down_sample:
            self.conv_down_sample = _conv(in_channels, out_channels, kernel_size=1, stride=stride)
            self.bn_down_sample = norm(out_channels)
        if not weights_update:
            freeze(self)

    @staticmethod
    def strides(stride: int) -> tuple[int, int]:
        """Return the strides of the first 1x1 and of the 3x3 convolution."""
        return 1, stride

    def construct(self, x: Tensor) -> Tensor:
        """Map (B, in, h, w) to (B, out, h / stride, w / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = x
        if self.down_sample:
            shortcut = self.bn_down_sample(self.conv_down_sample(x))
        return self.relu(out + shortcut)


class ResNetFea(nn.Cell):
    """Apply stem and four stages; return the outputs of the stages, strides 4, 8, 16, 32.

    Args:
        block: `ResidualBlockUsing` or a class with the same arguments.
        layer_nums: blocks of each of the four stages.
        in_channels: input channels of each stage; the first is also the stem's output channels.
        out_channels: channels of each stage's output.
        weights_update: train stem and first stage too; False freezes them, as is usual when
            fine-tuning (Girshick, "Fast R-CNN", section 4.5).
    """

    def __init__(
        self,
        block: type[nn.Cell],
        layer_nums: Sequence[int],
        in_channels: Sequence[int],
        out_channels: Sequence[int],
        weights_update: bool = False,
    ):
        super().__init__()
        self.frozen_stem = not weights_update
        self.conv1 = _conv(3, in_channels[0], kernel_size=7, stride=2, padding=3)
        self.bn1 = _BatchNorm2dInit(in_channels[0], use_batch_statistics=False)
        self.relu = ops.ReLU()
        self.maxpool = ops.MaxPool(kernel_size=3, strides=2, pad_mode="SAME")
        if self.frozen_stem:
            freeze(self)
        stages = zip(layer_nums, in_channels, out_channels, (1, 2, 2, 2))
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            self._make_layer(block, *shape, weights_update=weights_update or number > 0)
            for number, shape in enumerate(stages)
        )

    @staticmethod
    def _make_layer(
        block: type[nn.Cell],
        layer_num: int,
        in_channels: int,
        out_channels: int,
        stride: int,
        weights_update: bool,
    ) -> nn.SequentialCell:
        """Make one stage: the first block changes channels and resolution, the others keep them."""
        first = block(in_channels, out_channels, stride, True, weights_update=weights_update)
        others = [
            block(out_channels, out_channels, weights_update=weights_update)
            for _ in range(1, layer_num)
        ]
        return nn.SequentialCell([first, *others])

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map images (B, 3, H, W) float32 to C2, C3, C4, C5, each (B, out_channels[i], h, w)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        c2 = self.layer1(x)
        if self.frozen_stem:
            c2 = ops.stop_gradient(c2)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)


def freeze(cell: nn.Cell) -> None:
    """Exclude every parameter of `cell` from training."""
    for parameter in cell.get_parameters():
        parameter.requires_grad = False
