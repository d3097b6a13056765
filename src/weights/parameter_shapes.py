"""List the detector's parameters by name and shape from its configuration, without MindSpore.

Checks before a start use it: how large checkpoints and messages are, and which parts of a
checkpoint fit. A test compares the list with the network's parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from src.model_utils.config import setting, trains_all_layers
from src.weights.local_params import local_names

Shape = tuple[int, ...]
FLOAT_BYTES = 4
BLOCK_EXPANSION = 4  # output channels of a bottleneck block per inner channel


def parameter_shapes(config: Any) -> dict[str, Shape]:
    """Return name -> shape of every parameter of the detector, trained or not.

    Args:
        config: keys of default_config.yaml.
    """
    return {
        **dict(_backbone(config)),
        **dict(_neck(config)),
        **dict(_proposals(config)),
        **dict(_box_head(config)),
    }


def model_bytes(config: Any) -> int:
    """Return the bytes of all parameters; a checkpoint of the detector is hardly larger."""
    return FLOAT_BYTES * count_values(parameter_shapes(config))


def trained_shapes(config: Any) -> dict[str, Shape]:
    """Return those of `parameter_shapes` that are trained.

    Statistics are not, nor are stem and first stage unless `trainable_backbone_layers` is 5.
    """
    first = ("backbone.conv1.", "backbone.bn1.", "backbone.layer1.")
    frozen = () if trains_all_layers(config) else first
    statistics = ("moving_mean", "moving_variance")
    return {
        name: shape
        for name, shape in parameter_shapes(config).items()
        if not name.startswith(frozen) and not name.endswith(statistics)
    }


def federated_shapes(config: Any) -> dict[str, Shape]:
    """Return the federated ones of `trained_shapes`; a UserError where local_params is wrong."""
    shapes = trained_shapes(config)
    for name in local_names(shapes, setting(config, "local_params")):
        del shapes[name]
    return shapes


def federated_share(config: Any) -> float:
    """Return the share of the trained values that is federated, at most 1."""
    return count_values(federated_shapes(config)) / count_values(trained_shapes(config))


def count_values(shapes: Mapping[str, Shape]) -> int:
    """Return the number of values in parameters of these shapes."""
    return sum(math.prod(shape) for shape in shapes.values())


def _backbone(config: Any) -> Iterator[tuple[str, Shape]]:
    stem = config.resnet_in_channels[0]
    yield from _conv("backbone.conv1", stem, 3, 7)
    yield from _norm("backbone.bn1", stem)
    stages = zip(config.resnet_block, config.resnet_in_channels, config.resnet_out_channels)
    for stage, (blocks, channels, out) in enumerate(stages, 1):
        for block in range(blocks):
            name = f"backbone.layer{stage}.{block}"
            yield from _block(name, out if block else channels, out, shortcut=block == 0)


def _block(name: str, channels: int, out: int, shortcut: bool) -> Iterator[tuple[str, Shape]]:
    inner = out // BLOCK_EXPANSION
    for number, shape in enumerate(((inner, channels, 1), (inner, inner, 3), (out, inner, 1)), 1):
        yield from _conv(f"{name}.conv{number}", *shape)
        yield from _norm(f"{name}.bn{number}", shape[0])
    if shortcut:
        yield from _conv(f"{name}.conv_down_sample", out, channels, 1)
        yield from _norm(f"{name}.bn_down_sample", out)


def _neck(config: Any) -> Iterator[tuple[str, Shape]]:
    out = config.fpn_out_channels
    for level, channels in enumerate(config.fpn_in_channels):
        yield from _conv(f"fpn_ncek.lateral_convs_list.{level}", out, channels, 1, bias=True)
        yield from _conv(f"fpn_ncek.fpn_convs_list.{level}", out, out, 3, bias=True)


def _proposals(config: Any) -> Iterator[tuple[str, Shape]]:
    name, width = "rpn_with_loss.rpn_convs_list.0", config.rpn_feat_channels
    logits = config.num_anchors * config.rpn_cls_out_channels
    yield from _conv(f"{name}.rpn_conv", width, config.rpn_in_channels, 3, bias=True)
    yield from _conv(f"{name}.rpn_cls", logits, width, 1, bias=True)
    yield from _conv(f"{name}.rpn_reg", 4 * config.num_anchors, width, 1, bias=True)


def _box_head(config: Any) -> Iterator[tuple[str, Shape]]:
    width, cells = config.rcnn_fc_out_channels, config.roi_layer.out_size**2
    boxes = 4 * (config.num_classes - bool(config.without_bg_loss))
    for name, shape in (
        ("shared_fc_0", (config.rcnn_in_channels * cells, width)),
        ("shared_fc_1", (width, width)),
        ("cls_scores", (width, config.num_classes)),
        ("reg_scores", (width, boxes)),
    ):
        yield f"rcnn.{name}.weight", shape
        yield f"rcnn.{name}.bias", shape[1:]


def _conv(
    name: str, out: int, channels: int, kernel: int, bias: bool = False
) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (out, channels, kernel, kernel)
    if bias:
        yield f"{name}.bias", (out,)


def _norm(name: str, channels: int) -> Iterator[tuple[str, Shape]]:
    for part in ("moving_mean", "moving_variance", "gamma", "beta"):
        yield f"{name}.{part}", (channels,)
