"""Fingerprints: a few numbers that tell whether two silos train the same thing.

Silos must agree on more than they exchange: frozen tensors, the class list, the image size. Each
such aspect becomes one integer. Together they form a small float32 feature that the servers hold
next to the weights and every silo sends unchanged. A mean of equal numbers is that number up to
rounding, so a silo that pulls the model and rounds it can name what differs. Every checkpoint of a
job holds the fingerprint too, so that its loader can name the settings that differ from those of
its training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import UserError
from src.weights.ckpt_file import MARK
from src.weights.source import CONVERT, V1, V1_5

FEATURE_NAME = MARK

# Which configuration keys silos compare, and why not the others. Add each new key to one list.
#
# If these differ, an average or a detector's boxes mean nothing. Each key is an aspect.
SHARED_KEYS = (
    "backbone coco_classes img_width img_height keep_ratio anchor_scales anchor_ratios "
    "anchor_strides rpn_target_means rpn_target_stds roi_layer roi_align_featmap_strides "
    "roi_align_finest_scale rcnn_target_means rcnn_target_stds"
).split()
LOCAL_ASPECT = "local_params"
FROZEN_ASPECT = "frozen weights (pre_trained, seed)"
UNIT_ASPECT = "data_size_unit"
ALGORITHM_ASPECT = "aggregation (the federation's file)"
SYNC_ASPECT = "sync_type and its keys"
# The aspects of a detector's job, in the order of its fingerprint.
ASPECTS = (*SHARED_KEYS, LOCAL_ASPECT, FROZEN_ASPECT, UNIT_ASPECT, ALGORITHM_ASPECT, SYNC_ASPECT)
VERSION_ASPECT = "version of this software"
# Training can continue with other values of these; coco_classes may gain or lose entries.
REFITTED = ("coco_classes", "img_width", "img_height", "keep_ratio")

# Keys that are compared through what follows from them.
KEYS_OF_ASPECTS = {
    LOCAL_ASPECT: ["local_params"],
    FROZEN_ASPECT: ["pre_trained", "seed"],
    UNIT_ASPECT: ["data_size_unit"],
    SYNC_ASPECT: (
        "sync_type min_consistent_rate min_consistent_rate_at_round ema_alpha "
        "observation_window_size frequency_increase_ratio unchanged_round"
    ).split(),
}
TOLD_BY_SIZES = "another value gives weights of other names or sizes, or no detector at all"
VIEW_OF_BOXES = "how many of the boxes are looked at and shown: chosen again by whoever looks"
# Keys in which silos may differ, grouped by reason; those of IDLE have no effect.
FREE_KEYS = {
    TOLD_BY_SIZES: (
        "num_classes num_anchors resnet_block resnet_in_channels resnet_out_channels "
        "trainable_backbone_layers fpn_in_channels fpn_out_channels fpn_num_outs rpn_in_channels "
        "rpn_feat_channels roi_align_out_channels rcnn_in_channels rcnn_fc_out_channels "
        "without_bg_loss"
    ).split(),
    VIEW_OF_BOXES: (
        "rpn_nms_pre rpn_max_num rpn_nms_thr test_score_thr test_iou_thr test_max_per_img"
    ).split(),
    "how a silo learns: what has been learned means the same": (
        "batch_size base_lr lr_type sgd_step milestones warmup_step warmup_ratio momentum "
        "weight_decay loss_scale grad_clip grad_clip_norm client_epoch_num sync_frequency "
        "flip_ratio expand_ratio num_gts rpn_loss_cls_weight rpn_loss_reg_weight neg_iou_thr "
        "pos_iou_thr min_pos_iou num_expected_neg num_expected_pos rpn_proposal_nms_pre "
        "rpn_proposal_max_num rpn_proposal_nms_thr neg_iou_thr_stage2 pos_iou_thr_stage2 "
        "min_pos_iou_stage2 num_bboxes_stage2 num_expected_pos_stage2 num_expected_neg_stage2 "
        "rcnn_loss_cls_weight rcnn_loss_reg_weight"
    ).split(),
    "how much a silo hides of what it sends: a mean of blurred weights means the same": (
        "dp_clip_norm dp_noise_multiplier dp_delta dp_max_epsilon"
    ).split(),
    "which models and silos are let in: those that are mean the same": (
        "max_model_change roster"
    ).split(),
    "a silo's own data": (
        "mindrecord_dir instance_set image_dir coco_root train_data_type val_data_type "
        "train_set val_set dataset anno_path prefix strict max_image_pixels run_eval interval "
        "eval_limit"
    ).split(),
    "a silo's own machine": (
        "device_target device_id threads num_parallel_workers python_multiprocessing "
        "dataset_sink_mode test_batch_size"
    ).split(),
    "which files are written and where": (
        "save_checkpoint checkpoints_kept resume_state log_max_mb log_files_kept ckpt_file "
        "file_name file_format restore_bbox ori_h ori_w enable_modelarts data_url "
        "checkpoint_url train_url data_path load_path output_path"
    ).split(),
    "nothing depends on it": ["activate_num_classes"],
}

# The weighted mean of S equal values v has an error of about S * v * 2**-24. With v below 2**16 and
# a hundred silos that is less than a half, so rounding restores v.
_VALUES = 65521


def fingerprint(aspects: Mapping[str, object]) -> np.ndarray:
    """Return one integer in 1 to 65521 for the aspects' names, then one for each, in order.

    Args:
        aspects: name -> any value whose `repr` is the same exactly when the aspect is: a string, a
            number, a list of these; for arrays their `digest`.

    Returns:
        float32, 1-D, one longer than `aspects`.
    """
    numbers = [_number(repr(list(aspects))), *(_number(repr(value)) for value in aspects.values())]
    return np.array(numbers, np.float32)


def differing(names: Sequence[str], mine: np.ndarray, theirs: np.ndarray) -> list[str]:
    """Return the names of the aspects whose numbers differ; [] if the fingerprints agree.

    Args:
        names: the aspects' names, as given to `fingerprint`.
        theirs: as the servers returned it, open or not.
    """
    theirs = np.abs(np.asarray(theirs, np.float64).reshape(-1))
    if theirs.size != mine.size or not np.isfinite(theirs).all():
        return [VERSION_ASPECT]
    different = np.abs(theirs - mine.astype(np.float64)) > 0.5
    if different[0]:
        return [VERSION_ASPECT]
    return [name for name, differs in zip(names, different[1:]) if differs]


def opened(mark: np.ndarray) -> np.ndarray:
    """Return the fingerprint of an initial model that was made without a checkpoint."""
    return -np.abs(mark)


def is_open(mark: np.ndarray) -> bool:
    """Return whether a fingerprint is that of a model that was made without a checkpoint."""
    return bool(np.asarray(mark).reshape(-1)[:1].sum() < 0)


def same_mark(mark: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two fingerprints agree in all aspects, open or not."""
    return mark.size == other.size and bool(np.abs(np.abs(mark) - np.abs(other)).max() < 0.5)


def key_aspects(config: Any) -> dict[str, object]:
    """Return the aspects that are configuration keys: a detector's results depend on them."""
    aspects = {key: _as_floats(getattr(config, key)) for key in SHARED_KEYS}
    layer = config.roi_layer
    aspects["roi_layer"] = _as_floats([layer.out_size, layer.sample_num])
    return aspects


def _as_floats(value: Any) -> Any:
    """Return a key's value with its numbers as floats, so that 1 and 1.0 are the same."""
    if isinstance(value, (list, tuple)):
        return [_as_floats(item) for item in value]
    return float(value) if type(value) is int else value


def unlike_aspects(known: Mapping[str, object], mark: np.ndarray) -> list[str]:
    """Return which of `known` differ from a detector's job; [] for other versions' fingerprints.

    Args:
        known: some of `ASPECTS` by name; the others are not compared.
        mark: the fingerprint in the detector's checkpoint.
    """
    found = differing(ASPECTS, fingerprint({name: known.get(name) for name in ASPECTS}), mark)
    return [name for name in found if name in known]


def is_of_this_version(mark: np.ndarray) -> bool:
    """Return whether a fingerprint holds the aspects that this version compares for a detector."""
    return differing(ASPECTS, fingerprint(dict.fromkeys(ASPECTS)), mark) != [VERSION_ASPECT]


def require_trainable(
    config: Any, mark: np.ndarray | None, classes: int | None, path: Path, key: str = ""
) -> None:
    """Refuse to continue training weights that mean something else under `config`.

    The keys in `REFITTED` may differ; for another number of classes the box head is initialized
    again.

    Args:
        config: configuration of the detector to train.
        mark: the fingerprint in the checkpoint; None if it has none.
        classes: columns of the checkpoint's class scores; None if it has no box head.
        path: the checkpoint's path, for the message.
        key: the beginning of the message.

    Raises:
        UserError: the backbone, anchors or offsets differ, or as many classes have other names.
    """
    if mark is None:
        return
    known = key_aspects(config)
    for name in REFITTED:
        if name != "coco_classes" or classes != config.num_classes:
            del known[name]
    other = V1 if config.backbone == V1_5 else V1_5
    words = {
        "backbone": f"another backbone than {config.backbone} (set backbone: {other})",
        "coco_classes": f"{classes} classes of other names, or in another order (give coco_classes "
        f"as it was; to train it for others give --classes=<its names> to "
        f"{CONVERT.format(path)} --backbone={config.backbone})",
    }
    for name in known.keys() - words.keys():
        value = getattr(config, name)
        value = getattr(value, "__dict__", value)
        words[name] = f"other {name} than {value} (set them as they were)"
    unlike = unlike_aspects(known, mark)
    if unlike:
        found = ", and with ".join(words[name] for name in unlike)
        raise UserError(f"{key}{path}: was trained with {found}")


def common_factor(mine: np.ndarray, theirs: np.ndarray) -> float:
    """Return the servers' fingerprint divided by this silo's; 1 if they disagree in an aspect.

    With a factor other than 1 the servers' mean of equal numbers is wrong, and so is the model's.
    """
    theirs = np.asarray(theirs, np.float64).reshape(-1)
    if theirs.size != mine.size or not np.isfinite(theirs).all():
        return 1.0
    factors = theirs / mine
    middle = float(np.median(factors))
    multiplied = middle > 0 and np.abs(factors / middle - 1).max() < 1e-4
    return middle if multiplied and abs(middle - 1) > 1e-3 else 1.0


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return a hexadecimal digest of names, shapes, types and values, in the order of the names."""
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        state.update(f"{name} {array.dtype.str} {array.shape}".encode())
        state.update(array.reshape(-1).data.cast("B"))
    return state.hexdigest()


def _number(text: str) -> int:
    value = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(value, "little") % _VALUES + 1
