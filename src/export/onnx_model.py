"""Build the whole detector as one ONNX model, from the image to its boxes, from its weights.

MindSpore's own exporter refuses the network and pools RoIs differently (docs/export.md), so the
graph is built here. It takes one image at a time, uses only operators of the ONNX standard, and
does what src/evaluation/detect.py does with an image.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Union

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from src.data.augmentation import MEAN, STD
from src.evaluation.metrics import MAX_DETECTIONS
from src.FasterRcnn.anchor_generator import AnchorGenerator
from src.FasterRcnn.proposal_generator import CANDIDATES_PER_POSITION
from src.FasterRcnn.resnet import BN_EPS
from src.model_utils.config import backbone_of


def backbone(graph: GraphBuilder, image: str, config: Any) -> list[str]:
    """Add `ResNetFea`: C2 to C5 of `image` (1, 3, H, W)."""
    x = _normed(graph, "backbone.conv1", "backbone.bn1", image, stride=2, pad=3)
    x = graph.add("Relu", x)
    # The library's SAME: an even side needs one pixel of padding, which is at its end.
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
    """Add `ResidualBlockUsing`, or `ResidualBlockUsing_V1`, which strides on the 1x1."""
    on_1x1, on_3x3 = (stride, 1) if backbone_of(backbone).stride_on_1x1 else (1, stride)
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
    """Add a convolution without bias and its normalisation with stored statistics."""
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
    """Add `FeatPyramidNeck`: `levels` levels from P2 on, from C2 to C5."""
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
    """Repeat each pixel; sides are multiples of 32, so each level is twice the next."""
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
    """Add `RpnRegClsBlock`: logits (1, A, h, w) and offsets (1, 4 A, h, w) of a level."""
    name = "rpn_with_loss.rpn_convs_list.0"
    hidden = graph.add("Relu", _conv(graph, f"{name}.rpn_conv", level, pad=1))
    return _conv(graph, f"{name}.rpn_cls", hidden), _conv(graph, f"{name}.rpn_reg", hidden)


# The library's BoundingBoxDecode changes a side by this factor at most, and its inverse.
LARGEST_LOG_FACTOR = abs(np.log(0.016))


def decode(
    graph: GraphBuilder,
    boxes: str,
    offsets: str,
    means: Sequence[float],
    stds: Sequence[float],
    config: Any,
) -> str:
    """Move `boxes` (..., 4) by `offsets` (..., 4) and clip them to the network's input.

    A width is x2 - x1 + 1 (Girshick et al., 2014, appendix C, in whole pixels).
    """
    deltas = graph.add("Add", graph.add("Mul", offsets, floats(*stds)), floats(*means))
    shift, growth = graph.add_many("Split", 2, deltas, axis=-1)
    low, high = graph.add_many("Split", 2, boxes, axis=-1)
    size = graph.add("Add", graph.add("Sub", high, low), floats(1))
    centre = graph.add("Mul", graph.add("Add", low, high), floats(0.5))
    centre = graph.add("Add", centre, graph.add("Mul", size, shift))
    limit = np.float32(LARGEST_LOG_FACTOR)
    size = graph.add("Mul", size, graph.add("Exp", graph.add("Clip", growth, -limit, limit)))
    half = graph.add("Sub", graph.add("Mul", size, floats(0.5)), floats(0.5))
    corners = graph.add(
        "Concat", graph.add("Sub", centre, half), graph.add("Add", centre, half), axis=-1
    )
    bounds = floats(*[config.img_width, config.img_height] * 2)
    return graph.add("Min", graph.add("Max", corners, floats(0)), bounds)


def proposals(
    graph: GraphBuilder, maps: list[tuple[str, str]], anchors: list[np.ndarray], config: Any
) -> str:
    """Add `Proposal` in evaluation without padding: (P, 4) boxes of one image, best first.

    Args:
        maps: logits (1, A, h, w) and offsets (1, 4 A, h, w) of each level.
        anchors: anchors of each level, (h * w * A, 4).
    """
    found = [_of_level(graph, *map_, of, config) for map_, of in zip(maps, anchors)]
    boxes = graph.add("Concat", *(boxes for boxes, _ in found), axis=0)
    scores = graph.add("Concat", *(scores for _, scores in found), axis=0)
    _, order = _best(graph, scores, config.rpn_max_num)
    return graph.add("Gather", boxes, order)


def _of_level(
    graph: GraphBuilder, logits: str, offsets: str, anchors: np.ndarray, config: Any
) -> tuple[str, str]:
    """Return boxes (n, 4) and scores (n,) of one level that NMS keeps."""
    positions = len(anchors) // config.num_anchors
    count = min(config.rpn_nms_pre, positions * min(config.num_anchors, CANDIDATES_PER_POSITION))
    scores = graph.add("Sigmoid", _rows(graph, logits, ints(-1)))
    scores, index = graph.add_many("TopK", 2, scores, ints(count))
    offsets = graph.add("Gather", _rows(graph, offsets, ints(-1, 4)), index)
    boxes = decode(
        graph,
        graph.add("Gather", anchors, index),
        offsets,
        config.rpn_target_means,
        config.rpn_target_stds,
        config,
    )
    chosen = graph.add(
        "NonMaxSuppression",
        graph.add("Unsqueeze", boxes, ints(0)),
        graph.add("Unsqueeze", scores, ints(0, 1)),
        ints(count),
        floats(config.rpn_nms_thr),
    )
    places = graph.add("Gather", chosen, np.int64(2), axis=1)
    return graph.add("Gather", boxes, places), graph.add("Gather", scores, places)


def _rows(graph: GraphBuilder, level: str, shape: np.ndarray) -> str:
    """Reshape a map (1, ., h, w) to rows in the order of the anchors."""
    return graph.add("Reshape", graph.add("Transpose", level, perm=[0, 2, 3, 1]), shape)


def _best(graph: GraphBuilder, scores: str, most: int) -> list[str]:
    """Return the `most` greatest of (n,) scores, or all if there are fewer, and their indices."""
    count = graph.add("Min", graph.add("Shape", scores), ints(most))
    return graph.add_many("TopK", 2, scores, count)


def detections(
    graph: GraphBuilder, boxes: str, scores: str, image_shape: str, config: Any
) -> tuple[str, str, str]:
    """Apply NMS within each class and keep the best detections, in pixels of the original.

    This equals `Faster_Rcnn.get_det_bboxes`, `within_image` and `top_detections` in turn.

    Args:
        boxes: (P, C, 4) of each proposal and class without the background, in pixels of the input.
        scores: (P, C).
        image_shape: (1, 4) height and width of the original, height and width factors.

    Returns:
        Boxes (n, 4), scores (n,), labels (n,) int64 counted from 0 without the background.
    """
    shape = graph.add("Reshape", image_shape, ints(-1))
    boxes = graph.add("Div", boxes, graph.add("Gather", shape, ints(3, 2, 3, 2)))
    boxes = graph.add("Transpose", boxes, perm=[1, 0, 2])
    scores = graph.add("Transpose", scores, perm=[1, 0])
    chosen = graph.add(
        "NonMaxSuppression",
        boxes,
        graph.add("Unsqueeze", scores, ints(1)),
        ints(config.rpn_max_num),
        floats(config.test_iou_thr),
        floats(config.test_score_thr),
    )
    places = graph.add("Gather", chosen, ints(0, 2), axis=1)
    boxes, scores = graph.add("GatherND", boxes, places), graph.add("GatherND", scores, places)
    labels = graph.add("Gather", chosen, np.int64(0), axis=1)
    bounds = graph.add("Gather", shape, ints(1, 0, 1, 0))
    boxes = graph.add("Min", graph.add("Max", boxes, floats(0)), bounds)
    sound = _with_area(graph, boxes)
    boxes, scores, labels = (
        graph.add("Compress", x, sound, axis=0) for x in (boxes, scores, labels)
    )
    scores, order = _best(graph, scores, min(config.test_max_per_img, MAX_DETECTIONS))
    return graph.add("Gather", boxes, order), scores, graph.add("Gather", labels, order)


def _with_area(graph: GraphBuilder, boxes: str) -> str:
    """Tell which of (n, 4) boxes have an area, (n,) bool."""
    low, high = graph.add_many("Split", 2, boxes, axis=1)
    sides = graph.add("Cast", graph.add("Greater", high, low), to=1)
    return graph.add("Greater", graph.add("ReduceMin", sides, axes=[1], keepdims=0), floats(0.5))


OPSET = 16  # the first whose RoiAlign has an attribute for the shift of coordinates
IR_VERSION = 8  # the format that came with it: runtimes since 2022 read it

Value = Union[str, np.ndarray, np.generic]


class GraphBuilder:
    """Collect nodes and constants of a graph.

    Args:
        weights: name -> array; `weight` adds them as constants of the same names.
    """

    def __init__(self, weights: dict[str, np.ndarray]):
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def weight(self, name: str) -> str:
        """Add a weight of the detector; a KeyError if there is none of this name."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(self._weights[name], name)
        return name

    def add(self, kind: str, *inputs: Value, **attributes: Any) -> str:
        """Add a node with one output; return the output's name. Arrays become constants."""
        return self.add_many(kind, 1, *inputs, **attributes)[0]

    def add_many(self, kind: str, count: int, *inputs: Value, **attributes: Any) -> list[str]:
        """Add a node with `count` outputs; return their names."""
        number = len(self._nodes)
        outputs = [f"{kind}_{number}_{place}" if place else f"{kind}_{number}"
                   for place in range(count)]  # fmt: skip
        names = [v if isinstance(v, str) else self._constant(v) for v in inputs]
        self._nodes.append(helper.make_node(kind, names, outputs, f"{kind}_{number}", **attributes))
        return outputs

    def named(self, value: str, name: str) -> str:
        """Give `value` the name of an output of the graph."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name))
        return name

    def _constant(self, array: np.ndarray | np.generic) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants[name] = numpy_helper.from_array(np.asarray(array), name)
        return name

    def model(
        self, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """Return the whole graph as a model; onnx checks it with the types of all its nodes."""
        constants = list(self._constants.values())
        graph = helper.make_graph(self._nodes, name, inputs, outputs, constants)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model


def ints(*values: int) -> np.ndarray:
    """Return int64, which ONNX takes for shapes, axes and counts."""
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    """Return float32."""
    return np.array(values, np.float32)


def detector_model(weights: dict[str, np.ndarray], config: Any) -> onnx.ModelProto:
    """Build the model.

    Its inputs are `image` (1, 3, img_height, img_width) float32 and `image_shape` (1, 4) float32
    (height and width of the original, factors of height and width), its outputs `boxes` (n, 4)
    float32 x1, y1, x2, y2 in pixels of the original, `scores` (n,) float32, best first, and
    `labels` (n,) int64 counted from 0 without the background.

    Args:
        weights: name -> float32 array of every parameter of a `Faster_Rcnn`.
        config: the detector's configuration.
    """
    graph = GraphBuilder(weights)
    levels = pyramid(graph, backbone(graph, "image", config), config.fpn_num_outs)
    maps = [anchor_maps(graph, level) for level in levels]
    boxes = proposals(graph, maps, _anchors(config), config)
    regions, features = pooled(graph, boxes, levels, config)
    scores, moved = _box_head(graph, regions, features, config)
    found = detections(graph, moved, scores, "image_shape", config)
    for value, name in zip(found, ("boxes", "scores", "labels")):
        graph.named(value, name)
    model = graph.model("faster_rcnn", _inputs(config), _outputs())
    helper.set_model_props(model, _properties(config))
    model.producer_name = "cross-silo-faster-rcnn"
    return model


def _inputs(config: Any) -> list[onnx.ValueInfoProto]:
    image = [1, 3, config.img_height, config.img_width]
    return [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, image),
        helper.make_tensor_value_info("image_shape", TensorProto.FLOAT, [1, 4]),
    ]


def _outputs() -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n"]),
        helper.make_tensor_value_info("labels", TensorProto.INT64, ["n"]),
    ]


def _properties(config: Any) -> dict[str, str]:
    """Return what a program needs besides the graph, as text for the model's metadata."""
    return {
        "classes": json.dumps(config.coco_classes[1:], ensure_ascii=False),
        "mean": json.dumps(MEAN.tolist()),
        "std": json.dumps(STD.tolist()),
        "channels": "RGB",
        "keep_ratio": json.dumps(config.keep_ratio),
        "backbone": config.backbone,
    }


def _anchors(config: Any) -> list[np.ndarray]:
    """Return the anchors of each level, (h * w * A, 4) float32."""
    generators = [
        AnchorGenerator(stride, config.anchor_scales, config.anchor_ratios)
        for stride in config.anchor_strides
    ]
    return [g.grid_anchors(size, g.base_size) for g, size in zip(generators, config.feature_shapes)]


def pooled(graph: GraphBuilder, boxes: str, levels: list[str], config: Any) -> tuple[str, str]:
    """Pool (P, 4) boxes, each from the level of its size.

    Returns:
        The boxes in the order of the features, level by level, and the features (P, C * bins).
    """
    level = _level_numbers(graph, boxes, config)
    regions, features = [], []
    for number, stride in enumerate(config.roi_align_featmap_strides):
        of_level = graph.add("Equal", level, np.int64(number))
        regions.append(graph.add("Compress", boxes, of_level, axis=0))
        features.append(_aligned(graph, regions[-1], levels[number], stride, config))
    joined = graph.add("Concat", *features, axis=0)
    size = config.rcnn_in_channels * config.roi_layer.out_size**2
    return (
        graph.add("Concat", *regions, axis=0),
        graph.add("Reshape", joined, ints(-1, size)),
    )


def _level_numbers(graph: GraphBuilder, boxes: str, config: Any) -> str:
    """Return the level (P,) int64 of each box, by the limits of `SingleRoIExtractor.levels`."""
    low, high = graph.add_many("Split", 2, boxes, axis=1)
    sides = graph.add("Add", graph.add("Sub", high, low), floats(1))
    width, height = graph.add_many("Split", 2, graph.add("Max", sides, floats(0)), axis=1)
    area = graph.add("Mul", width, height)
    count = len(config.roi_align_featmap_strides)
    limits = floats(*((config.roi_align_finest_scale * 2.0**i) ** 2 for i in range(1, count)))
    above = graph.add("Cast", graph.add("Greater", area, limits), to=TensorProto.INT64)
    return graph.add("ReduceSum", above, ints(1), keepdims=0)


def _aligned(graph: GraphBuilder, boxes: str, level: str, stride: int, config: Any) -> str:
    """Return features (n, C, bins, bins) of (n, 4) boxes from one level.

    The detector samples without a shift by half a pixel, x2 and y2 being the last pixel of a box.
    RoiAlign without the shift (`output_half_pixel`) widens narrow boxes to a cell, which the
    detector does not; with it (`half_pixel`) it keeps their width. So this uses `half_pixel` and
    adds half a cell to the boxes first, which cancels the shift.
    """
    half = stride / 2
    corners = graph.add("Add", boxes, floats(half, half, half + 1, half + 1))
    count = graph.add("Slice", graph.add("Shape", boxes), ints(0), ints(1))
    images = graph.add("Expand", ints(0), count)
    return graph.add(
        "RoiAlign",
        level,
        corners,
        images,
        mode="avg",
        coordinate_transformation_mode="half_pixel",
        output_height=config.roi_layer.out_size,
        output_width=config.roi_layer.out_size,
        sampling_ratio=config.roi_layer.sample_num,
        spatial_scale=1 / stride,
    )


def _box_head(graph: GraphBuilder, regions: str, features: str, config: Any) -> tuple[str, str]:
    """Add `Rcnn`: scores (P, C) of the classes without the background, and boxes (P, C, 4)."""
    objects = config.num_classes - 1
    hidden = features
    for name in ("shared_fc_0", "shared_fc_1"):
        hidden = graph.add("Relu", _dense(graph, name, hidden))
    scores = graph.add("Softmax", _dense(graph, "cls_scores", hidden), axis=-1)
    scores = graph.add("Slice", scores, ints(1), ints(config.num_classes), ints(1))
    with_background = 0 if config.without_bg_loss else 1
    offsets = _dense(graph, "reg_scores", hidden)
    offsets = graph.add("Reshape", offsets, ints(-1, objects + with_background, 4))
    if with_background:
        offsets = graph.add("Slice", offsets, ints(1), ints(config.num_classes), ints(1))
    each = graph.add("Unsqueeze", regions, ints(1))
    means, stds = config.rcnn_target_means, config.rcnn_target_stds
    return scores, decode(graph, each, offsets, means, stds, config)


def _dense(graph: GraphBuilder, name: str, x: str) -> str:
    return graph.add(
        "Gemm", x, graph.weight(f"rcnn.{name}.weight"), graph.weight(f"rcnn.{name}.bias")
    )
