"""Feature pyramid (Lin et al., "Feature Pyramid Networks for Object Detection", section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn, ops

from src.FasterRcnn.cpu.convolution import Conv3x3


def bias_init_zeros(shape: Sequence[int]) -> Tensor:
    """Return zeros of the given shape, float32."""
    return Tensor(np.zeros(shape, dtype=np.float32))


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int = 0,
    pad_mode: str = "pad",
) -> nn.Conv2d:
    """Make a convolution with bias."""
    init = {"weight_init": "xavier_uniform", "bias_init": bias_init_zeros((out_channels,))}
    if kernel_size == 3 and stride == 1 and pad_mode == "same":
        return Conv3x3(in_channels, out_channels, has_bias=True, **init)
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        pad_mode=pad_mode,
        padding=padding,
        has_bias=True,
        **init,
    )


class FeatPyramidNeck(nn.Cell):
    """Make pyramid levels with equal channels from a backbone's stages, adding coarse to fine.

    Args:
        in_channels: channels of the backbone's outputs, finest first.
        out_channels: channels of every level.
        num_outs: number of levels; each level beyond the inputs takes every second pixel of the
            one before.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, num_outs: int):
        super().__init__()
        self.num_ins = len(in_channels)
        self.num_outs = num_outs
        self.lateral_convs_list = nn.CellList(
            [
                _conv(channels, out_channels, kernel_size=1, pad_mode="valid")
                for channels in in_channels
            ]
        )
        self.fpn_convs_list = nn.CellList(
            [_conv(out_channels, out_channels, pad_mode="same") for _ in in_channels]
        )
        self.subsample = ops.MaxPool(kernel_size=1, strides=2, pad_mode="same")

    def construct(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Map outputs (B, in_channels[i], h, w) to `num_outs` levels (B, out_channels, ., .).

        Each map is upsampled to the size of the next finer one by repeating the nearest pixel.
        """
        levels = (self.lateral_convs_list[self.num_ins - 1](inputs[self.num_ins - 1]),)  # type: tuple
        for i in range(self.num_ins - 2, -1, -1):
            lateral = self.lateral_convs_list[i](inputs[i])
            above = ops.ResizeNearestNeighbor(ops.shape(lateral)[2:])(levels[0])
            levels = (lateral + above,) + levels
        outs = ()  # type: tuple
        for i in range(self.num_ins):
            outs += (self.fpn_convs_list[i](levels[i]),)
        for _ in range(self.num_outs - self.num_ins):
            outs += (self.subsample(outs[-1]),)
        return outs
