"""Faster R-CNN (Ren et al., 2015) with a feature pyramid, for each backbone."""

from __future__ import annotations

import mindspore
from mindspore import Tensor, nn, ops

from src.FasterRcnn import resnet, resnet50v1
from src.FasterRcnn.anchor_generator import AnchorGenerator
from src.FasterRcnn.bbox_assign_sample_stage2 import BboxAssignSampleForRcnn
from src.FasterRcnn.config_check import check_config
from src.FasterRcnn.cpu import blas, region_layer
from src.FasterRcnn.fpn_neck import FeatPyramidNeck
from src.FasterRcnn.initialization import init_parameters
from src.FasterRcnn.postprocessing import DetectionsOfClasses, generator_img_meta, usual_metas
from src.FasterRcnn.proposal_generator import Proposal
from src.FasterRcnn.rcnn import Rcnn
from src.FasterRcnn.roi_align import SingleRoIExtractor
from src.FasterRcnn.rpn import RPN
from src.model_utils.config import Config, backbone_of, setting, trains_all_layers

__all__ = ["FasterRcnn_Infer", "Faster_Rcnn", "generator_img_meta"]


def block_of(backbone: str) -> type[nn.Cell]:
    """Return the class of a backbone's blocks.

    Raises:
        UserError: there is no such backbone.
    """
    on_1x1 = backbone_of(backbone).stride_on_1x1
    return resnet50v1.ResidualBlockUsing_V1 if on_1x1 else resnet.ResidualBlockUsing


class Faster_Rcnn(DetectionsOfClasses):
    """Run the whole detector; after `set_train()` it gives losses, else detections.

    Weights are initialised from `config.seed`.

    Args:
        config: the detector's configuration.
        backbone: a value of the key `backbone`; None is `config.backbone`.

    Raises:
        UserError: keys of `config` do not fit together.
    """

    def __init__(self, config: Config, backbone: str | None = None):
        super().__init__()
        check_config(config)
        self.backbone = resnet.ResNetFea(
            block_of(backbone or config.backbone),
            config.resnet_block,
            config.resnet_in_channels,
            config.resnet_out_channels,
            weights_update=trains_all_layers(config),
        )
        # The misspelt name is part of the parameter names that checkpoints carry.
        self.fpn_ncek = FeatPyramidNeck(
            config.fpn_in_channels, config.fpn_out_channels, config.fpn_num_outs
        )
        self.rpn_with_loss = RPN(
            config,
            config.batch_size,
            config.rpn_in_channels,
            config.rpn_feat_channels,
            config.num_anchors,
            config.rpn_cls_out_channels,
        )
        self.anchor_generators = [
            AnchorGenerator(stride, config.anchor_scales, config.anchor_ratios)
            for stride in config.anchor_strides
        ]
        self.anchor_list = self.get_anchors(config.feature_shapes)
        self.proposal_generator = _proposals(config, config.batch_size)
        self.bbox_assigner_sampler_for_rcnn = BboxAssignSampleForRcnn(
            config, config.batch_size, config.rpn_proposal_max_num, True
        )
        self.roi_init(config)
        self.rcnn = Rcnn(
            config,
            config.rcnn_in_channels * config.roi_layer.out_size**2,
            config.batch_size,
            config.num_classes,
            config.rcnn_target_means,
            config.rcnn_target_stds,
        )
        self.test_mode_init(config)
        init_parameters(self, setting(config, "seed"))

    def roi_init(self, config: Config) -> None:
        """Set up the pooling of regions from the pyramid."""
        self.roi_align = SingleRoIExtractor(
            config,
            config.roi_align_out_channels,
            config.roi_align_featmap_strides,
            config.batch_size,
            config.roi_align_finest_scale,
        )
        self.joined = blas.usable()
        if self.joined:
            self.regions = region_layer.region_operator(self.roi_align, training=True)
            self.regions_test = region_layer.region_operator(self.roi_align, training=False)

    def test_mode_init(self, config: Config) -> None:
        """Set up what evaluation uses in place of training's parts."""
        self.proposal_generator_test = _proposals(config, config.test_batch_size)
        self.proposal_generator_test.set_train_local(config, training=False)
        super().test_mode_init(config)

    def get_anchors(self, featmap_sizes: list[list[int]]) -> tuple[Tensor, ...]:
        """Return each level's anchors, (h * w * A, 4) float32, for maps of the given (h, w)."""
        return tuple(
            Tensor(generator.grid_anchors(size, generator.base_size))
            for generator, size in zip(self.anchor_generators, featmap_sizes)
        )

    def construct(
        self,
        img_data: Tensor,
        img_metas: Tensor,
        gt_bboxes: Tensor | None = None,
        gt_labels: Tensor | None = None,
        gt_valids: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the losses of a batch in training, its detections in evaluation.

        Args:
            img_data: (B, 3, H, W) float32, normalised RGB.
            img_metas: in training (B, 3) height, width, scale of the network's input; in
                evaluation (B, 4) height and width of the original, and the factors by which
                height and width were scaled.
            gt_bboxes: (B, G, 4) float32 x1, y1, x2, y2 in pixels of the input; training only.
            gt_labels: (B, G) int32.
            gt_valids: (B, G) bool; False for padding and crowds.

        Returns:
            In training rpn_loss, rcnn_loss, rpn_cls_loss, rpn_reg_loss, rcnn_cls_loss,
            rcnn_reg_loss, each (1,). In evaluation boxes (B, D, 5) x1, y1, x2, y2 in pixels of
            the original and score, labels (B, D, 1) int32 counted from 0 without the background,
            mask (B, D, 1) bool, True for rows that are detections; D is the number of classes
            without the background times rpn_max_num.
        """
        levels = self.fpn_ncek(self.backbone(img_data))
        rpn_loss, scores, offsets, rpn_cls_loss, rpn_reg_loss, _ = self.rpn_with_loss(
            levels, img_metas, self.anchor_list, gt_bboxes, gt_labels, gt_valids
        )
        scores, offsets = _detached(scores), _detached(offsets)
        if not self.training:
            proposals, masks = self.proposal_generator_test(scores, offsets, self.anchor_list)
            return self.detections(levels, proposals, masks, img_metas)
        proposals, masks = self.proposal_generator(scores, offsets, self.anchor_list)
        rois, deltas, labels, mask = self.sampled_rois(
            proposals, masks, gt_bboxes, gt_labels, gt_valids
        )
        rcnn_loss, rcnn_cls_loss, rcnn_reg_loss, _ = self.head(levels, rois, deltas, labels, mask)
        return rpn_loss, rcnn_loss, rpn_cls_loss, rpn_reg_loss, rcnn_cls_loss, rcnn_reg_loss

    def sampled_rois(
        self,
        proposals: tuple[Tensor, ...],
        masks: tuple[Tensor, ...],
        gt_bboxes: Tensor,
        gt_labels: Tensor,
        gt_valids: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sample the RoIs of all images, with their targets.

        Returns:
            RoIs (R, 5) image index and box, offsets (R, 4), labels (R,), mask (R, 1).
        """
        rois, deltas, labels, used = (), (), (), ()  # type: tuple, tuple, tuple, tuple
        truths = ops.Unstack()(ops.cast(gt_bboxes, mindspore.float32))
        classes, valids = ops.Unstack()(gt_labels), ops.Unstack()(gt_valids)
        for i in range(len(proposals)):
            found = self.bbox_assigner_sampler_for_rcnn(
                truths[i], classes[i], masks[i], _corners(proposals[i]), valids[i]
            )
            rois += (_with_index(found[0], i),)
            deltas += (found[1],)
            labels += (found[2],)
            used += (found[3],)
        return (
            ops.stop_gradient(ops.concat(rois, 0)),
            ops.stop_gradient(ops.concat(deltas, 0)),
            ops.stop_gradient(ops.concat(labels, 0)),
            ops.stop_gradient(ops.concat(used, 0)),
        )

    def head(
        self, levels: tuple[Tensor, ...], rois: Tensor, deltas: Tensor, labels: Tensor, mask: Tensor
    ) -> tuple:
        """Apply pooling and box head; return what `Rcnn` returns.

        Args:
            levels: pyramid levels, finest first.
            rois: (R, 5) image index and box.
            deltas, labels: see `Rcnn`.
            mask: (R,) or (R, 1), nonzero for the rows that count.
        """
        if not self.joined:
            features = self.roi_align(rois, levels[0], levels[1], levels[2], levels[3])
            return self.rcnn(features, deltas, labels, mask)
        counts = ops.cast(ops.reshape(mask, (-1,)), mindspore.int32)
        dense = self.rcnn.shared_fc_0
        regions = self.regions if self.training else self.regions_test
        hidden, _ = regions(levels[0], levels[1], levels[2], levels[3], rois, counts, dense.weight)
        hidden = dense.bias_add(hidden, dense.bias)
        return self.rcnn.from_first_layer(hidden, deltas, labels, mask)

    def detections(
        self,
        levels: tuple[Tensor, ...],
        proposals: tuple[Tensor, ...],
        masks: tuple[Tensor, ...],
        img_metas: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, labels and mask of a batch from its proposals."""
        rois, boxes = (), ()  # type: tuple, tuple
        for i in range(len(proposals)):
            boxes += (_corners(proposals[i]),)
            rois += (_with_index(boxes[i], i),)
        used = ops.concat(masks, 0)
        _, cls_logits, reg_logits, _ = self.head(levels, ops.concat(rois, 0), (), (), used)
        return self.get_det_bboxes(cls_logits, reg_logits, used, ops.concat(boxes, 0), img_metas)


class FasterRcnn_Infer(nn.Cell):
    """Return only detections: `Faster_Rcnn` in evaluation.

    Args:
        config: the detector's configuration. With `restore_bbox`, images that come without
            img_metas are treated as originals of `ori_h` x `ori_w` pixels.
        network: the detector; None makes one from `config`.

    Raises:
        UserError: `restore_bbox` without the size of the originals.
    """

    def __init__(self, config: Config, network: Faster_Rcnn | None = None):
        super().__init__(auto_prefix=False)
        self.network = network or Faster_Rcnn(config)
        self.network.set_train(False)
        self.usual_metas = Tensor(usual_metas(config))

    def construct(
        self, img_data: Tensor, img_metas: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, labels and mask, as `Faster_Rcnn` in evaluation.

        Without img_metas boxes are in pixels of the input, or with `restore_bbox` of the originals.
        """
        if img_metas is None:
            img_metas = ops.tile(self.usual_metas, (ops.shape(img_data)[0], 1))
        return self.network(img_data, img_metas)


def _proposals(config: Config, batch_size: int) -> Proposal:
    return Proposal(
        config,
        batch_size,
        config.activate_num_classes,
        config.use_sigmoid_cls,
        config.rpn_target_means,
        config.rpn_target_stds,
    )


def _with_index(boxes: Tensor, index: int) -> Tensor:
    """Put the image's index in the batch before each box: (N, 4) to (N, 5)."""
    places = ops.ones((ops.shape(boxes)[0], 1), mindspore.float32) * index
    return ops.concat((places, boxes), 1)


def _corners(proposals: Tensor) -> Tensor:
    """Return the (N, 4) boxes of (N, 5) proposals."""
    return ops.slice(proposals, (0, 0), (-1, 4))


def _detached(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the same values without a gradient."""
    result = ()  # type: tuple
    for tensor in tensors:
        result += (ops.stop_gradient(tensor),)
    return result
