"""Measure the data path alone: a generated COCO set to MindRecord, and MindRecord to batches."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from src.benchmarks.children import Child
from src.benchmarks.measure import (
    Setting,
    add_setting_flags,
    describe,
    machine,
    machine_line,
    say,
    setting_of,
    show,
)
from src.data.synthetic_coco import DrawingPlan, draw_part
from src.errors import UserError

WORK = "src.benchmarks.workloads:DataWork"
IMAGES = 200
IMAGE_SIZE = "640x480"
PART = "train2017"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `benchmark.py data`."""
    add_setting_flags(parser)
    parser.add_argument("--images", type=int, default=IMAGES, help=f"default {IMAGES}")
    parser.add_argument("--image_size", default=IMAGE_SIZE, help="of the JPEG files; %(default)s")


def run(args: argparse.Namespace) -> int:
    """Measure and print.

    Raises:
        UserError: flags out of range.
        StartError: a process failed.
    """
    setting = setting_of(args)
    return show(args, measure(setting, plan_of(args.image_size), args.images), report)


def plan_of(size: str) -> DrawingPlan:
    """Return the drawing plan for a size like 640x480.

    Raises:
        UserError: not of that form, or too small.
    """
    words = size.split("x")
    if len(words) != 2 or not all(word.isdigit() for word in words):
        raise UserError(f"--image_size is {size}, expected width x height like 640x480")
    plan = DrawingPlan(width=int(words[0]), height=int(words[1]), max_shapes=10)
    plan.check()
    return plan


def measure(setting: Setting, plan: DrawingPlan, images: int) -> dict[str, Any]:
    """Generate, convert and read `images` images in a temporary folder.

    Returns:
        What `describe` and `machine` return, and `files`, `jpeg`, `convert_images_per_s`,
        `convert_peak_gb`, `convert_added_gb` (beyond what importing takes), `images_per_s`,
        `first_batch_s`, `peak_gb`.

    Raises:
        UserError: fewer images than two batches.
    """
    config = setting.load()
    if images < 2 * config.batch_size:
        raise UserError(
            f"--images is {images}, expected two batches of {config.batch_size} or more"
        )
    jpeg = f"{plan.width}x{plan.height}"
    with tempfile.TemporaryDirectory(prefix="benchmark_data_") as name:
        folder = Path(name)
        say(f"data: drawing {images} images of {jpeg}")
        draw_part(plan, folder, PART, 0, images)
        here = _with_data(setting, folder)
        with Child(WORK, here, setting.threads) as child:
            child.ready()
            converted = child.call("convert")
        say(f"converted: {images / converted['seconds']:.0f} images/s; reading")
        with Child(WORK, here, setting.threads) as child:
            child.ready()
            read = child.call("read")
    return {
        **describe(config, setting.threads),
        "files": images,
        "jpeg": jpeg,
        "convert_images_per_s": round(images / converted["seconds"], 1),
        "convert_peak_gb": round(converted["peak_gb"], 3),
        "convert_added_gb": round(converted["added_gb"], 3),
        "images_per_s": round(read["images"] / read["seconds"], 1),
        "first_batch_s": round(read["first_batch_s"], 3),
        "peak_gb": round(read["peak_gb"], 3),
        **machine(),
    }


def _with_data(setting: Setting, folder: Path) -> Setting:
    """Return the setting with the paths of the generated set."""
    places = {
        "instance_set": str(folder / "annotations" / f"instances_{PART}.json"),
        "image_dir": str(folder / PART),
        "mindrecord_dir": str(folder / "mindrecord_0"),
        "coco_root": "",
        "prefix": "",
    }
    return Setting(setting.config_path, {**setting.overrides, **places}, setting.threads)


def report(result: dict[str, Any]) -> str:
    """Return the result in words."""
    return "\n".join(
        [
            machine_line(result),
            f"{result['files']} JPEG files of {result['jpeg']} to MindRecord: "
            f"{result['convert_images_per_s']:.0f} images/s, peak memory "
            f"{result['convert_peak_gb']:.2f} GB, {result['convert_added_gb']:.2f} of it beyond "
            "the imports",
            f"MindRecord to batches of {result['batch']} at {result['image']}: "
            f"{result['images_per_s']:.0f} images/s, first batch after "
            f"{result['first_batch_s']:.2f} s, peak memory {result['peak_gb']:.2f} GB",
        ]
    )
