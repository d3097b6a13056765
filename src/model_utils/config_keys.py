"""Every key of the configuration: its default, its meaning, its allowed values.

`default_config.yaml`, the flags and their `--help` follow from this table. This is the only place
that defines keys. To add one, add a line here, list it in `src/federated/fingerprint.py` as
compared or not, and run `python tools/write_default_config.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from src.errors import UserError

TYPE_NAMES = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        default: the value if neither file nor flag sets the key; its type is the key's.
        help: what the key does, for `--help` and for the comment in `default_config.yaml`.
        choices: the allowed values; empty for any.
        instead: what to use if a value outside `choices` was wanted.
        above: the value must be larger than this.
        least: the value must be at least this.
        follows: if omitted, the key follows from another one instead of taking its default.
    """

    default: Any
    help: str
    choices: tuple[Any, ...] = ()
    instead: str = ""
    above: float | None = None
    least: float | None = None
    follows: bool = False

    def checked(self, name: str, value: Any, where: str) -> Any:
        """Return `value`, converted without loss to the key's type.

        Args:
            name: the key, for messages.
            value: the value from YAML or a flag.
            where: the file, or "command line".

        Raises:
            UserError: it has another type, or is outside the range or the choices.
        """
        found = _convert(value, self.default)
        if found is None:
            like = f"a {type(self.default).__name__} like {self.default}"
            expected = TYPE_NAMES.get(type(self.default), like)
            raise UserError(f"{where}: {name} is {value!r}, expected {expected}")
        if self.choices and found not in self.choices:
            several = "one of " if len(self.choices) > 1 else ""
            expected = several + ", ".join(str(choice) for choice in self.choices)
            instead = f": {self.instead}" if self.instead else ""
            raise UserError(f"{where}: {name} is {value!r}, expected {expected}{instead}")
        if self.above is not None and not found > self.above:
            raise UserError(f"{where}: {name} is {value!r}, expected more than {self.above:g}")
        if self.least is not None and not found >= self.least:
            raise UserError(f"{where}: {name} is {value!r}, expected {self.least:g} or more")
        return found


def _convert(value: Any, default: Any) -> Any:
    """Return `value` as the type of `default`; None if it is not of that type."""
    if isinstance(default, bool):
        return value if isinstance(value, bool) else None
    if isinstance(default, int):
        return value if isinstance(value, int) and not isinstance(value, bool) else None
    if isinstance(default, float):
        return _as_float(value)
    return value if isinstance(value, type(default)) else None


def _as_float(value: Any) -> float | None:
    """Return a float; YAML 1.1 reads 1e-5, without a point, as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isinf(number) else number


# The background, then COCO's 80 categories.
COCO_CLASSES = (
    "background, person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, "
    "traffic light, fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, "
    "cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, "
    "skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, "
    "tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, "
    "orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, "
    "dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, "
    "toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
).split(", ")


@dataclass(frozen=True)
class Backbone:
    """Describe a ResNet; the network, its FLOPs and its exports follow from this.

    Attributes:
        blocks: number of blocks in each of the four stages; `resnet_block` may set others.
        stride_on_1x1: whether the first block of a stage strides in its first 1x1 convolution
            (ResNet v1), not in its 3x3 convolution (v1.5).
    """

    blocks: tuple[int, int, int, int]
    stride_on_1x1: bool = False


# ModelZoo's deeper ones stride on the 3x3, although their names say v1.
BACKBONES = {
    "resnet_v1.5_50": Backbone((3, 4, 6, 3)),
    "resnet_v1_50": Backbone((3, 4, 6, 3), stride_on_1x1=True),
    "resnet_v1_101": Backbone((3, 4, 23, 3)),
    "resnet_v1_152": Backbone((3, 8, 36, 3)),
}

ONE_KIND = "the detector has no other kind"

SECTIONS: dict[str, dict[str, Key]] = {
    "the silo's data": {
        "mindrecord_dir": Key(
            "./datasets/coco_split/split_100/mindrecord_0",
            "folder of the MindRecord, named mindrecord_<number>",
        ),
        "instance_set": Key(
            "./datasets/coco_split/split_100/train_0.json",
            "COCO json; {} in it becomes the data type",
        ),
        "image_dir": Key(
            "",
            "folder of the images; empty looks in coco_root/train_data_type, then where the json "
            "says (info.image_dir), then around the json",
        ),
        "coco_root": Key("", "upstream's layout: instance_set lies in this folder too"),
        "train_data_type": Key("train2017", "folder of the training images in coco_root"),
        "val_data_type": Key("val2017", "folder of the validation images in coco_root"),
        "train_set": Key("", "json to use in place of instance_set"),
        "val_set": Key(
            "",
            "to evaluate on: a COCO json or a MindRecord folder; {worker} becomes the worker's "
            "number",
        ),
        "dataset": Key(
            "coco", "other: the text file anno_path with images in image_dir", ("coco", "other")
        ),
        "anno_path": Key("", "dataset other: the file of the labels"),
        "prefix": Key("", "base name of the MindRecord file; empty is FasterRcnn.mindrecord"),
        "strict": Key(False, "the first image or box that is broken, odd or too many is an error"),
        "max_image_pixels": Key(89_000_000, "an image with more pixels is left out", above=0),
        "num_classes": Key(81, "number of classes with the background", above=0),
        "coco_classes": Key(COCO_CLASSES, "names of the classes, the background first"),
    },
    "training": {
        "device_target": Key("CPU", "device of the workers", ("CPU", "GPU", "Ascend")),
        "device_id": Key(0, "number of the first worker's device", least=0),
        "threads": Key(
            0, "cores for one worker; 0: the machine's cores divided by local workers", least=0
        ),
        "seed": Key(1, "seed of the initial weights, the sampling and the order of data", least=0),
        "pre_trained": Key(
            "", "checkpoint of a ResNet or a whole detector to start from; empty: from the seed"
        ),
        "backbone": Key(
            "resnet_v1.5_50",
            "the ResNet; resnet_v1_50 strides on the first 1x1 convolution of a block, the others "
            "on the 3x3",
            tuple(BACKBONES),
            "another ResNet of the same blocks is set with resnet_block, a further kind of "
            "network is described in docs/extending.md",
        ),
        "batch_size": Key(4, "images in a training step", above=0),
        "base_lr": Key(
            0.001,
            "learning rate after the warm-up; the gradient is divided by loss_scale once "
            "(upstream's example: twice, its 0.04 acted as 0.00016)",
            above=0,
        ),
        "lr_type": Key(
            "dynamic",
            "dynamic: warm-up, then a cosine over the whole run; step: warm-up, then drops by 10 "
            "at sgd_step; multistep: drops by 10 at milestones without a warm-up, as in ModelZoo",
            ("dynamic", "step", "multistep"),
        ),
        "sgd_step": Key([8, 11], "lr_type step: epochs at which the learning rate drops by 10"),
        "milestones": Key([8, 11], "lr_type multistep: epochs at which it drops by 10"),
        "warmup_step": Key(500, "steps of warm-up; at most a third of the run is warm-up", least=0),
        "warmup_ratio": Key(0.0625, "share of base_lr at the first step", least=0),
        "momentum": Key(0.91, "of SGD", least=0),
        "weight_decay": Key(0.00001, "of SGD", least=0),
        "loss_scale": Key(256, "the loss is multiplied and the gradient divided by it", above=0),
        "grad_clip": Key(False, "scale the gradient down to a global norm of grad_clip_norm"),
        "grad_clip_norm": Key(10.0, "largest global norm with grad_clip", above=0),
        "num_parallel_workers": Key(2, "threads of the input pipeline", above=0),
        "python_multiprocessing": Key(False, "processes in place of those threads"),
        "dataset_sink_mode": Key(
            False, "log one line per epoch; devices that can sink the data set do so"
        ),
    },
    "rounds of the federation": {
        "client_epoch_num": Key(1, "local epochs in one iteration of the federation", above=0),
        "sync_frequency": Key(
            0,
            "steps (epochs with dataset_sink_mode) in one iteration; 0: client_epoch_num epochs",
            least=0,
        ),
        "data_size_unit": Key(
            1,
            "images that count as one in the average, the same for all silos and the servers; a "
            "silo may count 65,535 at most",
            above=0,
        ),
        "max_model_change": Key(
            10.0,
            "a global model is not taken whose change is more than so many times the largest of "
            "its last changes and half its norm, see docs/recovery.md; 0: any is taken",
            least=0,
        ),
        "local_params": Key(
            "",
            'trained weights that stay in the silo, such as "rcnn.*", several with commas; the '
            "servers need the same. A worker that is started again without --resume has lost them, "
            "unless --pre_trained is its own newest checkpoint (docs/privacy.md)",
        ),
        "dp_clip_norm": Key(
            0.0,
            "differential privacy: scale the silo's update down to this L2 norm before it is sent; "
            "0 is off",
            least=0,
        ),
        "roster": Key(
            "",
            "the members of the job, silos.yaml: a worker has the name of its certificate there, "
            "and servers and status warn of strangers (docs/tls.md); empty: any silo",
        ),
        "dp_noise_multiplier": Key(
            0.0,
            "times dp_clip_norm: standard deviation of the noise on each value that is sent; the "
            "more, the smaller epsilon",
            least=0,
        ),
        "dp_delta": Key(
            0.00001,
            "of the epsilon in worker.log: but for this probability, all that the silo has sent is "
            "at most exp(epsilon) times likelier with its data than with any other",
        ),
        "dp_max_epsilon": Key(
            0.0,
            "before an upload that would spend more epsilon than this the silo stops sending what "
            "it has trained, and goes on receiving (docs/privacy.md); 0: no limit",
            least=0,
        ),
        "sync_type": Key(
            "fixed",
            "adaptive: fewer steps between synchronisations as the silos' changes stop agreeing, "
            "with FedAvg and FedProx; twice as much travels (docs/aggregation.md)",
            ("fixed", "adaptive"),
        ),
        "min_consistent_rate": Key(
            1.1, "adaptive: lowest consistency to begin with; less: an earlier change", least=0
        ),
        "min_consistent_rate_at_round": Key(
            0, "adaptive: round in which that was seen, counted from 0", least=0
        ),
        "ema_alpha": Key(0.5, "adaptive: share of earlier rounds in the consistency, 0 to 1"),
        "observation_window_size": Key(
            5,
            "adaptive: rounds without a new lowest consistency before the steps become fewer",
            above=0,
        ),
        "frequency_increase_ratio": Key(
            2, "adaptive: divides the steps and multiplies that window, at each change", above=0
        ),
        "unchanged_round": Key(0, "adaptive: rounds in which the steps stay", least=0),
    },
    "checkpoints, logs and evaluation of a worker": {
        "save_checkpoint": Key(True, "write the global model after each iteration"),
        "checkpoints_kept": Key(
            0,
            "checkpoints of global models that each worker keeps, the newest ones, those from "
            "before a restart included; 0 keeps all",
            least=0,
        ),
        "resume_state": Key(
            True,
            "after each synchronisation write what --resume continues from, one file of the "
            "trained values' size",
        ),
        "log_max_mb": Key(
            64.0,
            "largest size of each log in 10**6 bytes; what follows goes into a new file and the "
            "earlier one is worker.log.1; 0: one file for ever (docs/long_runs.md)",
            least=0,
        ),
        "log_files_kept": Key(4, "earlier files that are kept of each log", least=0),
        "run_eval": Key(
            False, "evaluate the global model on val_set after every `interval` iterations"
        ),
        "interval": Key(1, "iterations between two evaluations", above=0),
        "eval_limit": Key(0, "images of val_set to evaluate on; 0: all", least=0),
        "test_score_thr": Key(0.05, "lowest score of a detection"),
        "test_iou_thr": Key(0.5, "overlap above which NMS drops the weaker detection of a class"),
        "test_max_per_img": Key(100, "most detections of an image"),
        "test_batch_size": Key(2, "images in a step of evaluation", above=0),
    },
    "image size and augmentation": {
        "img_width": Key(
            1280,
            "width of the network's input, a multiple of 32; feature_shapes is derived",
            above=0,
        ),
        "img_height": Key(768, "height of the network's input, a multiple of 32", above=0),
        "keep_ratio": Key(True, "keep the image's proportions and pad"),
        "flip_ratio": Key(0.5, "chance that an image is mirrored", least=0),
        "expand_ratio": Key(1.0, "chance that the zoom-out (a coin toss itself) is tried", least=0),
        "num_gts": Key(
            128, "objects of an image in a batch; the rest is background (docs/data.md)", above=0
        ),
    },
    "anchors and backbone": {
        "anchor_scales": Key([8], "anchor sizes in strides of the level"),
        "anchor_ratios": Key([0.5, 1.0, 2.0], "height over width of the anchors"),
        "anchor_strides": Key([4, 8, 16, 32, 64], "stride of each level, P2 to P6"),
        "num_anchors": Key(3, "anchors at a position: scales times ratios"),
        "resnet_block": Key(
            list(BACKBONES["resnet_v1.5_50"].blocks),
            "blocks of the four stages; left out: those of the backbone",
            follows=True,
        ),
        "trainable_backbone_layers": Key(
            3,
            "layers of the backbone that are trained, from its end: 3 leaves stem and first stage "
            "frozen, right with a pretrained backbone; 5 trains all, better from random weights",
            (3, 5),
        ),
        "resnet_in_channels": Key([64, 256, 512, 1024], "channels that enter each stage"),
        "resnet_out_channels": Key([256, 512, 1024, 2048], "channels that leave each stage"),
        "fpn_in_channels": Key([256, 512, 1024, 2048], "as resnet_out_channels"),
        "fpn_out_channels": Key(256, "channels of the pyramid"),
        "fpn_num_outs": Key(5, "levels of the pyramid"),
    },
    "region proposal network": {
        "rpn_in_channels": Key(256, "as fpn_out_channels"),
        "rpn_feat_channels": Key(256, "channels of the hidden layer"),
        "rpn_loss_cls_weight": Key(1.0, "factor of the classification loss"),
        "rpn_loss_reg_weight": Key(1.0, "factor of the box loss"),
        "rpn_target_means": Key([0.0, 0.0, 0.0, 0.0], "means of the box targets"),
        "rpn_target_stds": Key([1.0, 1.0, 1.0, 1.0], "standard deviations of the box targets"),
        "neg_iou_thr": Key(0.3, "overlap below which an anchor is background"),
        "pos_iou_thr": Key(0.7, "overlap from which an anchor is an object"),
        "min_pos_iou": Key(0.3, "least overlap of the best anchor of a box"),
        "num_expected_neg": Key(
            256, "sampled anchors of an image, and the divisor of the losses", above=0
        ),
        "num_expected_pos": Key(128, "of them positive, at most", above=0),
        "activate_num_classes": Key(2, "2: object or background"),
        "rpn_proposal_nms_pre": Key(2000, "training: candidates of a level before NMS"),
        "rpn_proposal_max_num": Key(2000, "training: proposals of an image after NMS", above=0),
        "rpn_proposal_nms_thr": Key(0.7, "training: overlap above which NMS drops a candidate"),
        "rpn_nms_pre": Key(1000, "evaluation: candidates of a level before NMS"),
        "rpn_max_num": Key(1000, "evaluation: proposals of an image after NMS", above=0),
        "rpn_nms_thr": Key(0.7, "evaluation: overlap above which NMS drops a candidate"),
    },
    "RoI pooling and box head": {
        "roi_layer": Key(
            {"type": "RoIAlign", "out_size": 7, "sample_num": 2},
            "cells of a region's side, samples of a cell's side",
        ),
        "roi_align_out_channels": Key(256, "as fpn_out_channels"),
        "roi_align_featmap_strides": Key([4, 8, 16, 32], "strides of the pooled levels"),
        "roi_align_finest_scale": Key(
            56, "regions below twice this size come from the first level"
        ),
        "neg_iou_thr_stage2": Key(0.5, "overlap below which a region is background"),
        "pos_iou_thr_stage2": Key(0.5, "overlap from which a region is an object"),
        "min_pos_iou_stage2": Key(0.5, "least overlap of the best region of a box"),
        "num_bboxes_stage2": Key(2000, "as rpn_proposal_max_num"),
        "num_expected_pos_stage2": Key(128, "sampled objects of an image, at most"),
        "num_expected_neg_stage2": Key(512, "sampled background regions of an image"),
        "rcnn_in_channels": Key(256, "as roi_align_out_channels"),
        "rcnn_fc_out_channels": Key(1024, "width of the two hidden layers"),
        "rcnn_loss_cls_weight": Key(1, "factor of the classification loss"),
        "rcnn_loss_reg_weight": Key(1, "factor of the box loss"),
        "rcnn_target_means": Key([0.0, 0.0, 0.0, 0.0], "means of the box targets"),
        "rcnn_target_stds": Key([0.1, 0.1, 0.2, 0.2], "standard deviations of the box targets"),
        "without_bg_loss": Key(True, "the box regressor has no columns for the background"),
    },
    "tools/export.py": {
        "ckpt_file": Key("", "checkpoint to export"),
        "file_name": Key("faster_rcnn", "name of what is written, without its ending"),
        "file_format": Key("MINDIR", "MINDIR or ONNX; AIR needs an Ascend"),
        "restore_bbox": Key(
            False, "MindIR: take the image alone, all originals having ori_h x ori_w pixels"
        ),
        "ori_h": Key(0, "height of the originals with restore_bbox"),
        "ori_w": Key(0, "width of the originals with restore_bbox"),
    },
    "workers as a job of ModelArts (docs/modelarts.md)": {
        "enable_modelarts": Key(
            False,
            "fetch data_url and checkpoint_url before the training, send output_path to train_url "
            "after it, with moxing",
        ),
        "data_url": Key(
            "",
            "folder of mindrecord_0, ... in the object store, fetched to data_path; relative paths "
            "of data count from there",
        ),
        "checkpoint_url": Key(
            "",
            "folder of pre_trained in the object store, fetched to load_path; without pre_trained "
            "its one .ckpt is it",
        ),
        "train_url": Key(
            "", "folder in the object store for output_path, also when the training failed"
        ),
        "data_path": Key("/cache/data", "where data_url is fetched to"),
        "load_path": Key("/cache/checkpoint_path", "where checkpoint_url is fetched to"),
        "output_path": Key("/cache/train", "the workers' folders"),
    },
}

# Upstream's and ModelZoo's files hold these. They have no effect here; a changed value is noted.
IDLE: dict[str, Key] = {
    "keep_checkpoint_max": Key(
        0,
        "deletes nothing, as in upstream's example, which never read it; checkpoints_kept limits "
        "what is kept",
        least=0,
    ),
    "epoch_size": Key(
        20,
        "fl_iteration_num and client_epoch_num give the length of a run; only dynamic_lr and "
        "multistep_lr of src/lr_schedule.py read it",
        above=0,
    ),
    "opt_type": Key(
        "sgd",
        "the optimiser is SGD with momentum",
        ("sgd",),
        "silos train with SGD; set base_lr, momentum and weight_decay for it",
    ),
    "sgd_momentum": Key(0.9, "momentum is read"),
    "finetune": Key(
        False,
        "pre_trained takes a detector of other classes by itself",
        (False,),
        "nothing reads it; pre_trained continues from any checkpoint, of other classes too",
    ),
    "run_distribute": Key(
        False, "a flag of run_cross_silo_fasterrcnn_worker_distributed.py: several ranks, one silo"
    ),
    "device_num": Key(1, "a flag of run_cross_silo_fasterrcnn_worker_distributed.py: the ranks"),
    "rank_id": Key(0, "ranks get their numbers from that script"),
    "save_checkpoint_epochs": Key(1, "a checkpoint is written after each iteration"),
    "save_checkpoint_path": Key("./", "checkpoints lie in the worker's folder"),
    "checkpoint_path": Key("", "the tools take --checkpoint"),
    "result_path": Key("", "tools/evaluate.py takes --output"),
    "log_summary": Key(False, "see tools/report.py", (False,), "no summary files are written"),
    "enable_profiling": Key(
        False,
        "see tools/benchmark.py",
        (False,),
        "it only ever profiled upstream's ModelArts runs",
    ),
    "rpn_head_weight": Key(1.0, "rpn_loss_cls_weight and rpn_loss_reg_weight are read"),
    "rpn_proposal_nms_post": Key(2000, "rpn_proposal_max_num is read"),
    "rpn_nms_post": Key(1000, "rpn_max_num is read"),
    "roi_sample_num": Key(640, "num_expected_pos_stage2 + num_expected_neg_stage2"),
    "num_expected_total_stage2": Key(512, "num_expected_pos_stage2 + num_expected_neg_stage2"),
    "use_sigmoid_cls": Key(True, "scores are sigmoids", (True,), ONE_KIND),
    "rpn_head_use_sigmoid": Key(True, "scores are sigmoids", (True,), ONE_KIND),
    "rpn_cls_out_channels": Key(1, "logits of an anchor", (1,), ONE_KIND),
    "rpn_proposal_nms_across_levels": Key(False, "NMS is per level", (False,), ONE_KIND),
    "rpn_nms_across_levels": Key(False, "NMS is per level", (False,), ONE_KIND),
    "rpn_proposal_min_bbox_size": Key(0, "small proposals are kept", (0,), ONE_KIND),
    "rpn_min_bbox_min_size": Key(0, "small proposals are kept", (0,), ONE_KIND),
    "rcnn_num_layers": Key(2, "hidden layers of the box head", (2,), ONE_KIND),
}

KEYS: dict[str, Key] = {n: key for keys in (*SECTIONS.values(), IDLE) for n, key in keys.items()}

# A file may hold these too. They follow from other keys, are checked against them, have no flags.
DERIVED = {
    "feature_shapes": Key([[0, 0]], "height and width of the levels P2 to P6"),
    "num_bboxes": Key(0, "anchors of an image"),
}

# Flags of upstream's worker launcher that set a key under another name.
ALIASES = {"client_batch_size": "batch_size", "client_learning_rate": "base_lr"}

# Flags of upstream's test_fl_fasterrcnn.py that no code ever read.
GONE_FLAGS = {
    "--img_size": "upstream's code never read it; leave it out: img_width and img_height are read",
    "--repeat_size": "upstream's code never read it; leave it out",
}
