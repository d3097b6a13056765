"""Detections of the recorded images against post-processing written out in plain numpy."""

import numpy as np
import pytest
from mindspore import Tensor, nn

from src.evaluation.detect import top_detections
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet, FasterRcnn_Infer

# Height and width of the originals, and the factors by which they became 128 x 160.
METAS = np.array([[100, 80, 1.28, 1.28], [64, 160, 2.0, 1.0]], np.float32)
SIZE_LIMIT = abs(np.log(0.016))


class Head(nn.Cell):
    """What the detector has before its post-processing: proposals, logits, offsets."""

    def __init__(self, net):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, image, metas):
        net = self.net
        levels = net.fpn_ncek(net.backbone(image))
        _, scores, offsets, _, _, _ = net.rpn_with_loss(
            levels, metas, net.anchor_list, None, None, None
        )
        return net.proposal_generator_test(scores, offsets, net.anchor_list), levels


class Classes(nn.Cell):
    """Logits and offsets of regions."""

    def __init__(self, net):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, rois, level_0, level_1, level_2, level_3):
        features = self.net.roi_align(rois, level_0, level_1, level_2, level_3)
        logits, _, offsets, _ = self.net.rcnn(features, (), (), ())
        return logits, offsets


@pytest.fixture(scope="module")
def case(golden):
    """Configuration, image and network of the recorded case, with many low scores let through."""
    config = golden.config(
        "main16", test_batch_size=2, test_score_thr=0.03, test_iou_thr=0.4, rpn_max_num=100,
        rpn_nms_pre=100, rpn_nms_post=100,
    )  # fmt: skip
    net = Faster_Rcnn_Resnet(config)
    golden.set_weights(net)
    net.set_train(False)
    return config, net, golden.inputs(16)[0]


def heads_output(config, net, image):
    """For each image its regions (P, 4), which of them count (P,), logits and offsets."""
    (proposals, masks), levels = Head(net)(image, Tensor(METAS))
    boxes = [p.asnumpy()[:, :4] for p in proposals]
    rois = [np.insert(b, 0, number, axis=1) for number, b in enumerate(boxes)]
    logits, offsets = Classes(net)(Tensor(np.concatenate(rois)), *levels[:4])
    parts = (np.split(x.asnumpy(), len(boxes)) for x in (logits, offsets))
    return list(zip(boxes, (m.asnumpy() for m in masks), *parts))


def decoded(rois, offsets, config):
    """(P, 4) regions moved by (P, 4) offsets; a width is x2 - x1 + 1. In pixels of the input."""
    deltas = offsets * np.array(config.rcnn_target_stds) + np.array(config.rcnn_target_means)
    sizes = rois[:, 2:] - rois[:, :2] + 1
    centres = (rois[:, :2] + rois[:, 2:]) / 2 + sizes * deltas[:, :2]
    halves = sizes * np.exp(np.clip(deltas[:, 2:], -SIZE_LIMIT, SIZE_LIMIT)) / 2 - 0.5
    corners = np.concatenate([centres - halves, centres + halves], axis=1)
    return np.clip(corners, 0, np.array([config.img_width, config.img_height] * 2))


def overlaps(box, others):
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    return common / (areas + np.prod(box[2:] - box[:2]) - common)


def survivors(boxes, scores, threshold):
    """Places of what suppression leaves, best first; and the overlap closest to the threshold."""
    rest, kept, closest = np.argsort(-scores, kind="stable"), [], 1.0
    while len(rest):
        kept.append(rest[0])
        common = overlaps(boxes[rest[0]], boxes[rest[1:]])
        closest = min([closest, *np.abs(common - threshold)])
        rest = rest[1:][common <= threshold]
    return kept, closest


def plain_detections(config, rois, used, logits, offsets, meta):
    """(n, 6) class from 0, box in pixels of the original, score; best first, no more than allowed.

    Also how near a score or an overlap came to its threshold.
    """
    logits, offsets, rois = (x.astype(np.float64) for x in (logits, offsets, rois))
    scores = np.exp(logits - logits.max(1, keepdims=True))
    scores /= scores.sum(1, keepdims=True)
    closest = np.abs(scores - config.test_score_thr).min()
    rows = []
    for label in range(config.num_classes - 1):
        boxes = decoded(rois, offsets[:, 4 * label : 4 * label + 4], config)
        boxes /= np.array([meta[3], meta[2]] * 2)
        places = np.flatnonzero(used & (scores[:, label + 1] > config.test_score_thr))
        kept, near = survivors(boxes[places], scores[places, label + 1], config.test_iou_thr)
        closest = min(closest, near)
        rows += [[label, *boxes[p], scores[p, label + 1]] for p in places[kept]]
    rows = np.array(rows)
    return rows[np.argsort(-rows[:, 5], kind="stable")][: config.test_max_per_img], closest


def test_detections_agree_with_plain_numpy(case):
    config, net, image = case
    found = [x.asnumpy() for x in FasterRcnn_Infer(config, net)(image, Tensor(METAS))]
    for i, output in enumerate(heads_output(config, net, image)):
        boxes, labels = top_detections(*(x[i] for x in found), config.test_max_per_img)
        expected, closest = plain_detections(config, *output, METAS[i])
        # Else rounding decides, and the case says nothing.
        assert closest > 1e-7 and len(expected) == config.test_max_per_img
        assert len(set(expected[:, 0])) > 3
        order = np.lexsort((expected[:, 1], np.round(-expected[:, 5], 5)))
        mine = np.lexsort((boxes[:, 0], np.round(-boxes[:, 4], 5)))
        assert labels[mine].tolist() == expected[order, 0].astype(int).tolist()
        np.testing.assert_allclose(boxes[mine, :4], expected[order, 1:5], atol=2e-3)
        np.testing.assert_allclose(boxes[mine, 4], expected[order, 5], atol=1e-5)
