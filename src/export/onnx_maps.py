"""Image to feature maps in ONNX: backbone, pyramid, maps of the region proposal network.

Each function mirrors the cell of the same name in src/FasterRcnn, whose docstrings give the
sources; weights keep their names.
"""

from __future__ import annotations

from typing import Any

from src.export.onnx_graph import GraphBuilder, floats
from src.FasterRcnn.resnet import BN_EPS


def backbone(graph: GraphBuilder, image: str, config: Any) -> list[str]:
    """C2 to C5 of `image` (1, 3, H, W); `ResNetFea`."""
    x = _normed(graph, "backbone.conv1", "backbone.bn1", image, stride=2, pad=3)
    x = graph.add("Relu", x)
    # The library's SAME: of the one pixel of padding that an even side needs, all lies behind.
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
    stages = []
    for stage, blocks in enumerate(config.resnet_block, 1):
        for block in range(blocks):
            first_of_later = stage > 1 and block == 0
            name = f"backbone.layer{stage}.{block}"
            x = _block(graph, name, x, 2 if first_of_later else 1, block == 0, config.backbone)
        stages.append(x)
    return stages


def _block(
    graph: GraphBuilder, name: str, x: str, stride: int, down_sample: bool, backbone: str
) -> str:
    """`ResidualBlockUsing`, or of resnet_v1_50 `ResidualBlockUsing_V1`."""
    on_1x1, on_3x3 = (stride, 1) if backbone == "resnet_v1_50" else (1, stride)
    out = _normed(graph, f"{name}.conv1", f"{name}.bn1", x, stride=on_1x1)
    out = graph.add("Relu", out)
    out = _normed(graph, f"{name}.conv2", f"{name}.bn2", out, stride=on_3x3, pad=1)
    out = graph.add("Relu", out)
    out = _normed(graph, f"{name}.conv3", f"{name}.bn3", out)
    if down_sample:
        down = (f"{name}.conv_down_sample", f"{name}.bn_down_sample")
        x = _normed(graph, *down, x, stride=stride)
    return graph.add("Relu", graph.add("Add", out, x))


def _normed(
    graph: GraphBuilder, conv: str, norm: str, x: str, stride: int = 1, pad: int = 0
) -> str:
    """A convolution without bias and the normalisation behind it, with its stored statistics."""
    x = _conv(graph, conv, x, stride, pad, bias=False)
    parts = ("gamma", "beta", "moving_mean", "moving_variance")
    statistics = [graph.weight(f"{norm}.{part}") for part in parts]
    return graph.add("BatchNormalization", x, *statistics, epsilon=BN_EPS)


def _conv(
    graph: GraphBuilder, name: str, x: str, stride: int = 1, pad: int = 0, bias: bool = True
) -> str:
    weights = [graph.weight(f"{name}.weight")] + ([graph.weight(f"{name}.bias")] if bias else [])
    return graph.add("Conv", x, *weights, strides=[stride] * 2, pads=[pad] * 4)


def pyramid(graph: GraphBuilder, stages: list[str], levels: int) -> list[str]:
    """P2 and on of C2 to C5; `FeatPyramidNeck`."""
    name = "fpn_ncek"
    merged: list[str] = []
    for i in range(len(stages) - 1, -1, -1):
        lateral = _conv(graph, f"{name}.lateral_convs_list.{i}", stages[i])
        if merged:
            lateral = graph.add("Add", lateral, _twice_as_large(graph, merged[0]))
        merged.insert(0, lateral)
    outs = [_conv(graph, f"{name}.fpn_convs_list.{i}", x, pad=1) for i, x in enumerate(merged)]
    while len(outs) < levels:
        outs.append(graph.add("MaxPool", outs[-1], kernel_shape=[1, 1], strides=[2, 2]))
    return outs


def _twice_as_large(graph: GraphBuilder, x: str) -> str:
    """Each pixel repeated; sides are multiples of 32, so each level is twice the next."""
    return graph.add(
        "Resize",
        x,
        "",
        floats(1, 1, 2, 2),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def anchor_maps(graph: GraphBuilder, level: str) -> tuple[str, str]:
    """Logits (1, A, h, w) and offsets (1, 4 A, h, w) of a level; `RpnRegClsBlock`."""
    name = "rpn_with_loss.rpn_convs_list.0"
    hidden = graph.add("Relu", _conv(graph, f"{name}.rpn_conv", level, pad=1))
    return _conv(graph, f"{name}.rpn_cls", hidden), _conv(graph, f"{name}.rpn_reg", hidden)
