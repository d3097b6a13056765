"""Count the floating-point operations of the detector's convolutions and matrix products.

Counted from the configuration alone, two for each multiplication with its addition. The rest
(normalisation, pooling, NMS, losses, the optimiser) is below a hundredth of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from src.model_utils.config import backbone_of


@dataclass(frozen=True)
class Layer:
    """Describe one convolution or matrix product, for a whole batch.

    Attributes:
        name: its name in the network.
        forward: floating-point operations of its forward pass; each of its gradients takes as many.
        weight_gradient: training needs the gradient of its weight.
        data_gradient: training needs the gradient of its input.
    """

    name: str
    forward: int
    weight_gradient: bool = True
    data_gradient: bool = True

    @property
    def training(self) -> int:
        """Return the operations of a training step."""
        return self.forward * (1 + self.weight_gradient + self.data_gradient)


def training_flops(config: Any) -> int:
    """Return the operations of one training step of a batch of `config.batch_size`."""
    regions = config.num_expected_pos_stage2 + config.num_expected_neg_stage2
    return sum(layer.training for layer in detector_layers(config, config.batch_size, regions))


def forward_flops(config: Any, images: int = 1, regions: int | None = None) -> int:
    """Return the operations of detecting in `images` images, `regions` each (None: rpn_max_num)."""
    layers = detector_layers(config, images, regions or config.rpn_max_num)
    return sum(layer.forward for layer in layers)


def detector_layers(config: Any, images: int, regions: int) -> list[Layer]:
    """Return every layer of the detector, for `images` images with `regions` RoIs each."""
    return [
        *_backbone(config, images),
        *_pyramid(config, images),
        *_proposals(config, images),
        *_head(config, images * regions),
    ]


def _conv(cells: int, kernel: int, channels: int, out: int) -> int:
    """Return the operations of a convolution with `cells` output positions over the batch."""
    return 2 * cells * kernel**2 * channels * out


def _cells(config: Any, images: int) -> list[int]:
    """Return the positions of each FPN level, P2 to P6, over the batch."""
    return [images * height * width for height, width in config.feature_shapes]


def _backbone(config: Any, images: int) -> Iterator[Layer]:
    """Yield the backbone's layers; the stem and first stage are frozen and get no gradient."""
    cells = _cells(config, images)
    width = config.resnet_in_channels[0]
    # The stem's map has twice the first level's height and width.
    yield Layer("stem", _conv(4 * cells[0], 7, 3, width), False, False)
    shapes = zip(config.resnet_block, config.resnet_in_channels, config.resnet_out_channels)
    for stage, (blocks, channels, out) in enumerate(shapes):
        before = cells[max(stage - 1, 0)]
        for block in range(blocks):
            first = block == 0
            flops = _bottleneck(
                config, before if first else cells[stage], cells[stage], channels, out, first
            )
            for name, forward in flops.items():
                # The first block of the second stage reads the frozen stage's output.
                reads_frozen = stage == 1 and first and name in ("conv1", "down_sample")
                yield Layer(
                    f"stage{stage + 1}.{block}.{name}",
                    forward,
                    weight_gradient=stage > 0,
                    data_gradient=stage > 0 and not reads_frozen,
                )
            channels = out


def _bottleneck(
    config: Any, before: int, after: int, channels: int, out: int, down_sample: bool
) -> dict[str, int]:
    """Return the operations of one block, from `before` positions to `after`."""
    inner = out // 4
    middle = after if backbone_of(config.backbone).stride_on_1x1 else before
    flops = {
        "conv1": _conv(middle, 1, channels, inner),
        "conv2": _conv(after, 3, inner, inner),
        "conv3": _conv(after, 1, inner, out),
    }
    if down_sample:
        flops["down_sample"] = _conv(after, 1, channels, out)
    return flops


def _pyramid(config: Any, images: int) -> Iterator[Layer]:
    out = config.fpn_out_channels
    for level, (cells, channels) in enumerate(zip(_cells(config, images), config.fpn_in_channels)):
        lateral = _conv(cells, 1, channels, out)
        yield Layer(f"fpn.lateral{level}", lateral, data_gradient=level > 0)
        yield Layer(f"fpn.conv{level}", _conv(cells, 3, out, out))


def _proposals(config: Any, images: int) -> Iterator[Layer]:
    hidden = config.rpn_feat_channels
    for level, cells in enumerate(_cells(config, images)):
        yield Layer(f"rpn.conv{level}", _conv(cells, 3, config.rpn_in_channels, hidden))
        logits = config.num_anchors * config.rpn_cls_out_channels
        yield Layer(f"rpn.cls{level}", _conv(cells, 1, hidden, logits))
        yield Layer(f"rpn.reg{level}", _conv(cells, 1, hidden, config.num_anchors * 4))


def _head(config: Any, regions: int) -> Iterator[Layer]:
    hidden = config.rcnn_fc_out_channels
    pooled = config.rcnn_in_channels * config.roi_layer.out_size**2
    offsets = 4 * (config.num_classes - config.without_bg_loss)
    for name, channels, out in (
        ("head.0", pooled, hidden),
        ("head.1", hidden, hidden),
        ("head.cls", hidden, config.num_classes),
        ("head.reg", hidden, offsets),
    ):
        yield Layer(name, _conv(regions, 1, channels, out))
