"""The whole detector as one ONNX model, from the image to its boxes, built from its weights.

MindSpore's own exporter refuses the network and pools regions otherwise (docs/export.md), so the
graph is put together here. It takes one image at a time, holds only operators of the ONNX standard,
and does what src/evaluation/detect.py does with an image.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from src.data.augmentation import MEAN, STD
from src.export.onnx_boxes import decode, detections, proposals
from src.export.onnx_graph import GraphBuilder, floats, ints
from src.export.onnx_maps import anchor_maps, backbone, pyramid
from src.FasterRcnn.anchor_generator import AnchorGenerator


def detector_model(weights: dict[str, np.ndarray], config: Any) -> onnx.ModelProto:
    """The model.

    Its inputs are `image` (1, 3, img_height, img_width) float32 and `image_shape` (1, 4) float32
    (height and width of the original, factors of height and width), its outputs `boxes` (n, 4)
    float32 x1, y1, x2, y2 in pixels of the original, `scores` (n,) float32, best first, and
    `labels` (n,) int64 counted from 0 without the background.

    Args:
        weights: name to float32 array of every parameter of a `Faster_Rcnn`.
        config: of the detector.
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
    """What a program needs beside the graph, as text in the model's metadata."""
    return {
        "classes": json.dumps(config.coco_classes[1:], ensure_ascii=False),
        "mean": json.dumps(MEAN.tolist()),
        "std": json.dumps(STD.tolist()),
        "channels": "RGB",
        "keep_ratio": json.dumps(config.keep_ratio),
        "backbone": config.backbone,
    }


def _anchors(config: Any) -> list[np.ndarray]:
    """Of each level, (h * w * A, 4) float32."""
    generators = [
        AnchorGenerator(stride, config.anchor_scales, config.anchor_ratios)
        for stride in config.anchor_strides
    ]
    return [g.grid_anchors(size, g.base_size) for g, size in zip(generators, config.feature_shapes)]


def pooled(graph: GraphBuilder, boxes: str, levels: list[str], config: Any) -> tuple[str, str]:
    """Features (P, C * bins) of (P, 4) boxes, each from the level of its size.

    Returns:
        The boxes in the order of the features, level by level, and the features.
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
    """Level (P,) int64 of each box, by the limits of `SingleRoIExtractor.levels`."""
    low, high = graph.add_many("Split", 2, boxes, axis=1)
    sides = graph.add("Add", graph.add("Sub", high, low), floats(1))
    width, height = graph.add_many("Split", 2, graph.add("Max", sides, floats(0)), axis=1)
    area = graph.add("Mul", width, height)
    count = len(config.roi_align_featmap_strides)
    limits = floats(*((config.roi_align_finest_scale * 2.0**i) ** 2 for i in range(1, count)))
    above = graph.add("Cast", graph.add("Greater", area, limits), to=TensorProto.INT64)
    return graph.add("ReduceSum", above, ints(1), keepdims=0)


def _aligned(graph: GraphBuilder, boxes: str, level: str, stride: int, config: Any) -> str:
    """Features (n, C, bins, bins) of (n, 4) boxes from one level.

    The detector samples without a shift by half a pixel, x2 and y2 being the last pixel of a box.
    RoiAlign without the shift (`output_half_pixel`) makes narrow boxes a cell wide, which ours
    does not; with it (`half_pixel`) it keeps their width, so the shift is added before.
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
    """Scores (P, C) of the classes without the background, and boxes (P, C, 4); `Rcnn`."""
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
