"""A detector shrunk by configuration alone: training, inference, and its post-processing."""

from types import SimpleNamespace

import mindspore
import numpy as np
import pytest
from mindspore import Tensor

from mindspore_hub_conf import create_network
from src.errors import UserError
from src.evaluation.detect import top_detections
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet, FasterRcnn_Infer
from src.model_utils.config import load_config
from src.network_define import train_cell
from src.weights.parameter_shapes import trained_shapes

TINY = "configs/tiny/default_config.yaml"
STDS = (0.1, 0.1, 0.2, 0.2)


@pytest.fixture(scope="module", autouse=True)
def graph_mode():
    mindspore.set_context(mode=mindspore.GRAPH_MODE)


def batch(config, seed=0):
    """Two images with one bright box each, and all the inputs of a training step."""
    rng = np.random.default_rng(seed)
    size = (config.img_height, config.img_width)
    image = 0.1 * rng.standard_normal((2, 3, *size)).astype(np.float32)
    box = np.zeros((2, config.num_gts, 4), np.float32)
    label = np.full((2, config.num_gts), -1, np.int32)
    valid = np.zeros((2, config.num_gts), bool)
    for i, (x, y, side) in enumerate(((8, 16, 31), (24, 4, 39))):
        image[i, i, y : y + side, x : x + side] += 2
        box[i, 0], label[i, 0], valid[i, 0] = (x, y, x + side, y + side), i + 1, True
    shape = np.array([[*size, 1]] * 2, np.float32)
    return [Tensor(array) for array in (image, shape, box, label, valid)]


@pytest.fixture(scope="module")
def trained():
    """A tiny detector that has seen one batch again and again."""
    config = load_config(TINY, grad_clip=True)
    net = Faster_Rcnn_Resnet(config)
    net.set_train()
    step = train_cell(net, config, np.full(150, 0.02, np.float32))
    inputs = batch(config)
    losses = [float(step(*inputs).asnumpy()) for _ in range(150)]
    return SimpleNamespace(config=config, net=net, step=step, losses=losses)


def test_it_is_tiny(trained):
    assert sum(p.size for p in trained.net.get_parameters()) < 40_000


def test_training_lowers_the_loss(trained):
    assert np.isfinite(trained.losses).all()
    assert np.mean(trained.losses[-5:]) < 0.3 * np.mean(trained.losses[:5])


def test_inference_finds_what_it_was_trained_on(trained):
    """One image at a time; boxes come back in pixels of the original, wider and less high."""
    config, net = trained.config, trained.net
    image, _, truth, label, _ = (x.asnumpy() for x in batch(config))
    metas = Tensor(np.array([[32, 128, 2.0, 0.5]], np.float32))
    infer = FasterRcnn_Infer(config, net)
    assert [p.name for p in infer.get_parameters()] == [p.name for p in net.get_parameters()]
    rows = (config.num_classes - 1) * config.rpn_max_num
    for i in range(2):
        boxes, labels, mask = (x.asnumpy() for x in infer(Tensor(image[i : i + 1]), metas))
        assert [boxes.shape, labels.shape, mask.shape] == [(1, rows, n) for n in (5, 1, 1)]
        assert (labels.dtype, mask.dtype) == (np.int32, np.bool_)
        best, found = top_detections(boxes[0], labels[0], mask[0], config.test_max_per_img)
        assert (best[:, 4] > config.test_score_thr).all()
        assert found[0] == label[i, 0] - 1
        expected = truth[i, 0] / np.array([0.5, 2.0, 0.5, 2.0])
        assert iou(best[0, :4], expected[None])[0] > 0.4
    net.set_train()


@pytest.mark.parametrize("layers", [3, 5])
def test_the_stem_is_trained_where_all_layers_of_the_backbone_are(layers):
    config = load_config(TINY, grad_clip=True, trainable_backbone_layers=layers)
    net = Faster_Rcnn_Resnet(config)
    net.set_train()
    before = {p.name: p.asnumpy().copy() for p in net.get_parameters()}
    train_cell(net, config, np.full(1, 0.02, np.float32))(*batch(config))
    changed = {p.name for p in net.get_parameters() if (p.asnumpy() != before[p.name]).any()}
    first = {"backbone.conv1.weight", "backbone.bn1.gamma", "backbone.layer1.0.conv1.weight"}
    assert changed & first == (first if layers == 5 else set())
    assert changed <= set(trained_shapes(config))
    assert {p.name for p in net.trainable_params()} == set(trained_shapes(config))


def test_images_without_a_box_are_background(trained):
    inputs = batch(trained.config)
    inputs[4] = Tensor(np.zeros(inputs[4].shape, bool))
    losses = [float(trained.step(*inputs).asnumpy()) for _ in range(5)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def iou(box, others):
    """Overlap of boxes whose width is x2 - x1."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    overlap = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    return overlap / (areas - overlap)


def decoded(roi, offsets, height, width):
    """A region moved by offsets; a width counts one pixel more than x2 - x1."""
    dx, dy, dw, dh = offsets * np.array(STDS)
    limit = abs(np.log(0.016))
    old = np.array([roi[2] - roi[0] + 1, roi[3] - roi[1] + 1])
    centre = (roi[:2] + roi[2:]) / 2 + old * [dx, dy]
    new = old * np.exp(np.clip([dw, dh], -limit, limit))
    corners = np.concatenate([centre - new / 2 + 0.5, centre + new / 2 - 0.5])
    return np.clip(corners, 0, [width, height, width, height])


def reference_detections(config, logits, offsets, used, rois, factors):
    """(label, box, score) of one image, class by class, best first."""
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    first_column = 1 if config.without_bg_loss else 0
    result = []
    for label in range(1, config.num_classes):
        start = 4 * (label - first_column)
        boxes = np.array(
            [
                decoded(roi, row[start : start + 4], config.img_height, config.img_width)
                for roi, row in zip(rois, offsets)
            ]
        ) / np.array([factors[1], factors[0]] * 2)
        rest = [i for i in np.argsort(-scores[:, label]) if used[i]]
        rest = [i for i in rest if scores[i, label] > config.test_score_thr]
        while rest:
            best, rest = rest[0], rest[1:]
            result.append((label - 1, boxes[best], scores[best, label]))
            rest = [i for i in rest if iou(boxes[best], boxes[i][None])[0] <= config.test_iou_thr]
    return result


@pytest.mark.parametrize("without_bg_loss", [True, False])
def test_post_processing(without_bg_loss):
    config = load_config(TINY, without_bg_loss=without_bg_loss)
    net = Faster_Rcnn_Resnet(config)
    rng = np.random.default_rng(3)
    count = config.rpn_max_num
    corner = rng.uniform(0, 40, (2 * count, 2))
    rois = np.concatenate([corner, corner + rng.uniform(5, 24, corner.shape)], 1)
    logits = rng.standard_normal((2 * count, config.num_classes)) * 2
    offsets = rng.standard_normal((2 * count, net.box_classes * 4)) * 3
    used = rng.random(2 * count) < 0.8
    metas = np.array([[48, 32, 1.25, 2.0], [64, 64, 1.0, 1.0]])
    boxes, labels, mask = (
        x.asnumpy()
        for x in net.get_det_bboxes(
            *(Tensor(x.astype(np.float32)) for x in (logits, offsets)),
            Tensor(used),
            *(Tensor(x.astype(np.float32)) for x in (rois, metas)),
        )
    )
    for i in range(2):
        rows = slice(i * count, (i + 1) * count)
        expected = reference_detections(
            config, logits[rows], offsets[rows], used[rows], rois[rows], metas[i, 2:]
        )
        kept = mask[i, :, 0]
        assert labels[i, kept, 0].tolist() == [label for label, _, _ in expected]
        np.testing.assert_allclose(boxes[i, kept, :4], [b for _, b, _ in expected], atol=1e-3)
        np.testing.assert_allclose(boxes[i, kept, 4], [s for _, _, s in expected], atol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"fpn_out_channels": 16}, "rpn_in_channels is 8 and fpn_out_channels is 16"),
        ({"rpn_proposal_max_num": 40}, "num_bboxes_stage2 is 50 and rpn_proposal_max_num is 40"),
        ({"anchor_scales": [4, 8]}, "num_anchors is 3, but anchor_scales times anchor_ratios"),
        ({"use_sigmoid_cls": False}, "use_sigmoid_cls is False, expected True: the detector has"),
        ({"rpn_nms_across_levels": True}, "rpn_nms_across_levels is True"),
        ({"fpn_num_outs": 4}, "fpn_num_outs is 4 and anchor_strides has 5 values, expected 5"),
    ],
)
def test_keys_that_do_not_fit_together(changes, message):
    with pytest.raises(UserError, match=message):
        Faster_Rcnn_Resnet(load_config(TINY, **changes))


def test_create_network():
    net = create_network("faster_rcnn", TINY, seed=7)
    assert isinstance(net, Faster_Rcnn_Resnet)
    assert isinstance(create_network("faster_rcnn", load_config(TINY)), Faster_Rcnn_Resnet)
    with pytest.raises(UserError, match="no network 'mask_rcnn' here, expected 'faster_rcnn'"):
        create_network("mask_rcnn")
