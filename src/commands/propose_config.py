"""Propose a configuration from the statistics of labels, and write it with the reasons."""

from __future__ import annotations

import math
import textwrap
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import numpy as np

from src.commands.propose_anchors import (
    RECALLED,
    USUAL_NUMBER,
    Anchors,
    Boxes,
    Canvas,
    propose_anchors,
)
from src.commands.propose_size import (
    MOST_SIDE,
    SMALL_PIXELS,
    SMALL_SHARE,
    extents,
    is_too_small,
    propose_size,
    quantile_of,
)
from src.data.coco_boxes import some
from src.data.label_statistics import (
    ASPECT_STEPS,
    BACKGROUND,
    RATIO_STEPS,
    SIDE_STEP,
    SIZE_STEPS,
    LabelStatistics,
)
from src.data.labels.convert import configuration_lines
from src.errors import UserError
from src.FasterRcnn.config_check import check_config
from src.files import reason, write_whole
from src.model_utils.config import Config, load_config

# Training from random weights: passes over a silo's images, and limits of the steps.
PASSES, LEAST_STEPS, MOST_STEPS = 24, 2000, 40_000
USABLE_STEPS = 1000  # the image size leaves time for these at least
# Seconds of a step on two cores, for each pixel and each sampled region of an image, and the power
# of the number of cores with which a step gets faster: from docs/performance.md, and a tenth more
# for the backbone's first layers, which are trained too.
PIXEL_SECONDS, REGION_SECONDS, CORES, SPEED_UP = 7e-6, 5e-4, 2, 0.7
BATCHES = (4, 2, 1)
MANY_IMAGES = 2000  # of a silo, from which a batch of 4 leaves enough steps in a pass
RATE, RATE_OF_IMAGE = 0.01, 0.005  # base_lr, and what each image of a small batch adds to it
COMMENT_WIDTH = 96
SHOWN = 12  # classes in a comment


@dataclass(frozen=True)
class Machine:
    """What training may use.

    Attributes:
        memory: bytes for one worker.
        hours: for the whole job.
        cores: of one worker.
        worker_bytes: estimates a worker's peak memory from a configuration.
    """

    memory: float
    hours: float
    cores: int
    worker_bytes: Callable[[Any], float]

    def seconds(self, pixels: float, batch: int, regions: int) -> float:
        """Estimate the seconds of a step with `batch` images of so many pixels and regions."""
        image = PIXEL_SECONDS * pixels + REGION_SECONDS * regions
        return batch * image * (CORES / self.cores) ** SPEED_UP


@dataclass
class Part:
    """A part of the configuration: its title, why it is so, and its keys."""

    title: str
    why: list[str]
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Inputs:
    """Everything that a proposal follows from.

    Attributes:
        labels: the statistics of all silos together.
        silos: number of images of each silo.
        machine: what training may use.
    """

    labels: LabelStatistics
    silos: Sequence[int]
    machine: Machine


def propose(inputs: Inputs) -> list[Part]:
    """Return the parts of a configuration for these labels, silos and machine.

    Raises:
        UserError: memory or time are too small for any image size.
    """
    labels = inputs.labels
    parts = [_class_part(labels), _region_part(labels)]
    parts.append(_size_part(inputs, {**parts[0].values, **parts[1].values}))
    parts.append(_anchor_part(labels, _config_of(parts)))
    parts.append(_training_part(inputs, _config_of(parts)))
    check_config(_config_of(parts))
    return parts


def _config_of(parts: Sequence[Part]) -> Config:
    return load_config(None, **{key: value for part in parts for key, value in part.values.items()})


def _class_part(labels: LabelStatistics) -> Part:
    counts = labels.by_class()
    common = sorted((name for name in counts if counts[name]), key=lambda name: -counts[name])
    shown = some([f"{name} {counts[name]}" for name in common], SHOWN)
    why = [f"{sum(counts.values())} objects in {labels.images} images: {shown}."]
    empty = [name for name, count in counts.items() if not count]
    if empty:
        why.append(f"Classes that nobody has, to be removed: {some(empty, SHOWN)}.")
    names = [BACKGROUND, *labels.classes]
    return Part("classes", why, {"num_classes": len(names), "coco_classes": names})


def _size_part(inputs: Inputs, known: dict[str, Any]) -> Part:
    machine, fewest = inputs.machine, min(inputs.silos)
    batch = 2 if fewest >= 2 and _largest_area(machine, known, 2) >= SIDE_STEP**2 else 1
    area = _largest_area(machine, known, batch)
    if area < SIDE_STEP**2:
        needed = machine.worker_bytes(load_config(None, **known, batch_size=1)) / 1e9
        raise UserError(
            f"no image size fits into {machine.memory / 1e9:.1f} GB of memory and "
            f"{machine.hours:g} hours (the default size needs {needed:.1f} GB): give larger "
            "--memory_gb or --hours"
        )
    size = propose_size(inputs.labels, area)
    values = {"img_width": size.width, "img_height": size.height}
    why = [
        f"The images have up to {size.own[0]}x{size.own[1]} pixels. {SMALL_SHARE:.0%} of the "
        f"objects of the smallest class, {size.smallest}, have {size.pixels:.0f} pixels or fewer "
        f"here (square root of the area); {SMALL_PIXELS} are wanted."
    ]
    if is_too_small(size.pixels):
        larger = "memory and time allow no larger input (--memory_gb, --hours)"
        cause = larger if size.is_limited else "the images have no more pixels"
        why.append(f"Objects as small as that are often missed: {cause}; cut images into tiles.")
    possible = [one for one in BATCHES if one <= fewest and (one < 4 or fewest >= MANY_IMAGES)]
    needs = {
        one: machine.worker_bytes(load_config(None, **known, **values, batch_size=one))
        for one in possible
    }
    batch = next((one for one in possible if needs[one] <= machine.memory), 1)
    why.append(
        f"A worker needs about {needs[batch] / 1e9:.1f} GB at this size and batch; "
        f"{machine.memory / 1e9:.1f} GB were allowed."
    )
    why.append("No zoom-out (expand_ratio): it makes small objects smaller still.")
    return Part("image size", why, {**values, "batch_size": batch, "expand_ratio": 0.0})


def _largest_area(machine: Machine, known: dict[str, Any], batch: int) -> int:
    """Return the most pixels of an image for which memory and time suffice; 0 for none."""
    sides = range(SIDE_STEP, MOST_SIDE + 1, SIDE_STEP)
    memory = [
        machine.worker_bytes(
            load_config(None, **known, img_width=side, img_height=side, batch_size=batch)
        )
        for side in sides
    ]
    regions = _regions(known)
    seconds = [machine.seconds(side * side, batch, regions) for side in sides]
    fitting = min(
        bisect_right(memory, machine.memory),
        bisect_right(seconds, machine.hours * 3600 / USABLE_STEPS),
    )
    return sides[fitting - 1] ** 2 if fitting else 0


def _anchor_part(labels: LabelStatistics, config: Config) -> Part:
    boxes = boxes_in_input(labels, config.img_width, config.img_height)
    canvas = Canvas(config.img_width, config.img_height, config.anchor_strides)
    default = Anchors(tuple(config.anchor_scales), tuple(config.anchor_ratios))
    found, default = propose_anchors(boxes, canvas, default)
    why = [
        f"Share of the objects that an anchor meets with an IoU of {RECALLED:g}, at places spread "
        f"over the image: {found.recall:.3f}; with the default, scales {list(default.scales)} and "
        f"ratios {list(default.ratios)}: {default.recall:.3f}.",
        f"Mean of the best IoU, each class counting the same: {found.overlap:.3f}; default "
        f"{default.overlap:.3f}.",
    ]
    pairs = zip(labels.classes, found.class_recall, default.class_recall)
    known = sorted((mine, name, theirs) for name, mine, theirs in pairs if not math.isnan(mine))
    lowest = [f"{name} {mine:.3f} (default {theirs:.3f})" for mine, name, theirs in known[:5]]
    why.append(f"The lowest of the classes: {', '.join(lowest)}.")
    if found.number != USUAL_NUMBER:
        why.append(
            f"{found.number} anchors at a position: a detector trained with {USUAL_NUMBER} does "
            "not fit as pre_trained, a backbone does."
        )
    values = {"anchor_scales": list(found.scales), "anchor_ratios": list(found.ratios)}
    return Part("anchors", why, {**values, "num_anchors": found.number})


def boxes_in_input(labels: LabelStatistics, width: int, height: int) -> Boxes:
    """Return the boxes in pixels of a network's input of this size."""
    place = {name: number for number, name in enumerate(labels.classes)}
    cells: dict[tuple[int, int], dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for (name, shape), count in labels.boxes.items():
        extent = float(extents(np.array(2 ** (shape.aspect / ASPECT_STEPS)), width, height))
        size = round(math.log2(extent) * SIZE_STEPS + shape.size)
        cells[size, shape.ratio][place[name]] += count
    size, ratio = np.array(sorted(cells), np.float64).T
    counts = np.zeros((len(place), len(cells)))
    for number, key in enumerate(sorted(cells)):
        for row, count in cells[key].items():
            counts[row, number] = count
    side, stretch = 2 ** (size / SIZE_STEPS), 2 ** (ratio / RATIO_STEPS / 2)
    return Boxes(np.minimum(side / stretch, width), np.minimum(side * stretch, height), counts)


def _region_part(labels: LabelStatistics) -> Part:
    most, usual = max(labels.objects), max(1, quantile_of(labels.objects, 0.9))
    positives = _step(1.5 * usual, 16, 16, 128)
    proposals, found = _step(14 * most, 100, 400, 2000), _step(10 * most, 100, 300, 1000)
    why = [
        f"Up to {most} objects in an image, {usual} or fewer in nine of ten: num_gts has room for "
        "all, and regions are sampled and proposed in proportion."
    ]
    return Part(
        "objects and regions of an image",
        why,
        {
            "num_gts": _step(most, 16, 16, 10**6),
            "rpn_proposal_nms_pre": proposals,
            "rpn_proposal_max_num": proposals,
            "num_bboxes_stage2": proposals,
            "num_expected_pos_stage2": positives,
            "num_expected_neg_stage2": 3 * positives,
            "rpn_nms_pre": found,
            "rpn_max_num": found,
        },
    )


def _regions(values: Mapping[str, Any]) -> int:
    """Return the regions of an image that are sampled in a training step."""
    return values["num_expected_pos_stage2"] + values["num_expected_neg_stage2"]


def _step(value: float, step: int, least: int, most: int) -> int:
    """Return `value` rounded up to a multiple of `step`, within limits."""
    return min(max(math.ceil(value / step) * step, least), most)


def _training_part(inputs: Inputs, config: Config) -> Part:
    batch, machine = config.batch_size, inputs.machine
    in_pass = max(1, min(inputs.silos) // batch)
    wanted = min(max(PASSES * in_pass, LEAST_STEPS), MOST_STEPS)
    seconds = machine.seconds(config.img_width * config.img_height, batch, _regions(vars(config)))
    steps = min(wanted, int(machine.hours * 3600 / seconds))
    frequency = min(_step(in_pass, 5, 25, 200), _step(steps / 10, 5, 5, 200))
    iterations = math.ceil(steps / frequency)
    steps = iterations * frequency
    silos = "The silo" if len(inputs.silos) == 1 else f"The smallest of {len(inputs.silos)} silos"
    why = [
        f"{silos} has {min(inputs.silos)} images, {in_pass} steps in a pass. From random weights: "
        f"{iterations} iterations of {frequency} steps, {steps / in_pass:.0f} passes, roughly "
        f"{steps * seconds / 3600:.1f} hours on {machine.cores} core(s) without evaluation.",
        f"Give --fl_iteration_num={iterations} to the launchers of scheduler, servers and workers, "
        "or set fl_iteration_num in default_yaml_config.yaml; sync_frequency is read from here. "
        "Fewer are enough with pre_trained weights.",
        "From random weights all layers of the backbone are trained; with pre_trained set "
        "trainable_backbone_layers to 3.",
    ]
    if steps < wanted:
        why.append(f"{wanted} steps are wanted: more --hours, or longer with --resume.")
    values = {
        "sync_frequency": frequency,
        "base_lr": min(RATE, RATE_OF_IMAGE * batch),
        "lr_type": "dynamic",
        "warmup_step": _step(steps / 20, 10, 20, 500),
        "momentum": 0.9,
        "weight_decay": 0.0001,
        "grad_clip": True,
        "loss_scale": 1,
        "num_parallel_workers": 1,
        "interval": max(1, iterations // 10),
        "checkpoints_kept": 2,
        "trainable_backbone_layers": 5,
    }
    return Part("training", why, values)


def iterations_of(parts: Sequence[Part]) -> str:
    """Return the flag with the iterations that the reasons name."""
    return next(
        word for part in parts for text in part.why for word in text.split()
        if word.startswith("--fl_iteration_num=")
    )  # fmt: skip


def as_yaml(parts: Sequence[Part]) -> str:
    """Return the configuration as YAML, each part below its reasons."""
    blocks = [
        "# Proposed from the labels by tools/propose_config.py. Every silo, the servers and the "
        "tools take the\n# same file. What is not listed has its value in default_config.yaml."
    ]
    for part in parts:
        comments = [f"# ---- {part.title}"]
        for text in part.why:
            comments += textwrap.wrap(
                text, COMMENT_WIDTH, initial_indent="# ", subsequent_indent="#   ",
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
        values = dict(part.values)
        lines = []
        if "coco_classes" in values:
            lines = [configuration_lines(values.pop("coco_classes")[1:])]
            del values["num_classes"]
        lines += [f"{key}: {value}" for key, value in values.items()]
        blocks.append("\n".join([*comments, *lines]))
    return "\n\n".join(blocks) + "\n"


def write_configuration(parts: Sequence[Part], path: Path, overwrite: bool) -> None:
    """Write the configuration.

    Raises:
        UserError: the file exists and must not be overwritten, or cannot be written.
    """
    if path.exists() and not overwrite:
        raise UserError(f"{path}: already there; choose another --out or give --overwrite")
    try:
        write_whole(path, as_yaml(parts))
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written: {reason(error)}") from error
