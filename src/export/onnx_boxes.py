"""Maps to proposals, and scores to detections, in ONNX: decoding, sorting, suppression.

NonMaxSuppression of ONNX Runtime measures overlaps as the detector does (a width is x2 - x1), and
suppresses above the threshold. Of equal scores it takes the earlier box first; the detector's
sorting network has another order, which decides nothing unless two scores agree to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from src.evaluation.coco_metrics import MAX_DETECTIONS
from src.export.onnx_graph import GraphBuilder, floats, ints
from src.FasterRcnn.proposal_generator import CANDIDATES_PER_POSITION

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
    """`boxes` (..., 4) moved by `offsets` (..., 4) and clipped to the network's input.

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
    """(P, 4) boxes of one image, best first; `Proposal` in evaluation, without its padding.

    Args:
        maps: logits (1, A, h, w) and offsets (1, 4 A, h, w) of each level.
        anchors: of each level, (h * w * A, 4).
    """
    found = [_of_level(graph, *map_, of, config) for map_, of in zip(maps, anchors)]
    boxes = graph.add("Concat", *(boxes for boxes, _ in found), axis=0)
    scores = graph.add("Concat", *(scores for _, scores in found), axis=0)
    _, order = _best(graph, scores, config.rpn_max_num)
    return graph.add("Gather", boxes, order)


def _of_level(
    graph: GraphBuilder, logits: str, offsets: str, anchors: np.ndarray, config: Any
) -> tuple[str, str]:
    """Boxes (n, 4) and scores (n,) of one level that suppression leaves."""
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
    """A map (1, ., h, w) as rows in the order of the anchors."""
    return graph.add("Reshape", graph.add("Transpose", level, perm=[0, 2, 3, 1]), shape)


def _best(graph: GraphBuilder, scores: str, most: int) -> list[str]:
    """The `most` greatest of (n,) scores, or all where they are fewer, and their places."""
    count = graph.add("Min", graph.add("Shape", scores), ints(most))
    return graph.add_many("TopK", 2, scores, count)


def detections(
    graph: GraphBuilder, boxes: str, scores: str, image_shape: str, config: Any
) -> tuple[str, str, str]:
    """Suppression within each class, and the best of what it leaves; in pixels of the original.

    As `Faster_Rcnn.get_det_bboxes`, `within_image` and `top_detections` one after the other.

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
    """Which of (n, 4) boxes have one, (n,) bool."""
    low, high = graph.add_many("Split", 2, boxes, axis=1)
    sides = graph.add("Cast", graph.add("Greater", high, low), to=1)
    return graph.add("Greater", graph.add("ReduceMin", sides, axes=[1], keepdims=0), floats(0.5))
