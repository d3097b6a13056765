"""Count the floating-point operations of the detector's convolutions and matrix products.

Counted from the parameters' shapes alone, two for each multiplication with its addition. The rest
(normalisation, pooling, NMS, losses, the optimiser) is below a hundredth of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from src.model_utils.config import backbone_of, trains_all_layers
from src.weights.parameter_shapes import parameter_shapes, trained_shapes


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
    trained = trained_shapes(config)
    reads_frozen = READS_IMAGE if trains_all_layers(config) else READS_FROZEN_STAGE
    return [
        Layer(
            name,
            2 * _positions(config, name, images, regions) * math.prod(shape),
            weight_gradient=f"{name}.weight" in trained,
            data_gradient=f"{name}.weight" in trained and not reads_frozen.fullmatch(name),
        )
        for name, shape in weight_shapes(config)
    ]


# The first trained layers read what needs no gradient: the image, or the frozen first stage.
READS_IMAGE = re.compile(r"backbone\.conv1")
READS_FROZEN_STAGE = re.compile(
    r"backbone\.layer2\.0\.conv(1|_down_sample)|fpn_ncek\.lateral_convs_list\.0"
)


def weight_shapes(config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of each weight of a convolution or dense layer."""
    for name, shape in parameter_shapes(config).items():
        if name.endswith(".weight"):
            yield name[: -len(".weight")], shape


def _positions(config: Any, name: str, images: int, regions: int) -> int:
    """Return how many times a layer multiplies by its weight: output positions, or regions."""
    levels = [images * height * width for height, width in config.feature_shapes]  # P2 to P6
    if name.startswith("rcnn."):
        return images * regions
    if name.startswith("rpn_with_loss."):
        return sum(levels)  # the same weights on every level
    if name.startswith("fpn_ncek."):
        return levels[int(name.rpartition(".")[2])]
    if name == "backbone.conv1":
        return 4 * levels[0]  # twice the first level's height and width
    _, layer, block, conv = name.split(".")
    stage = int(layer[len("layer") :]) - 1
    before_stride = conv == "conv1" and not backbone_of(config.backbone).stride_on_1x1
    is_first = before_stride and block == "0"
    return levels[max(stage - 1, 0)] if is_first else levels[stage]
