"""Measure the detection of one image: network, proposals, RoI pooling, and NMS by class.

The weights are the initial ones, so all scores are near one divided by the number of classes (0.012
for 81), below the configuration's test_score_thr of 0.05, and no box would reach NMS. Therefore the
threshold is 0 here: every candidate passes, which is the most that NMS can have to do. The share
that passed is printed. A trained detector is surer: --score_scale=100 --score_thr=0.05 multiplies
the weight of the layer that gives the scores, and about one class of each region passes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from src.benchmarks.children import Child
from src.benchmarks.flops import forward_flops
from src.benchmarks.measure import (
    FULL,
    Setting,
    add_setting_flags,
    describe,
    machine,
    machine_line,
    say,
    setting_of,
    show,
)
from src.benchmarks.profiling import profile, profile_text
from src.benchmarks.step import add_profile_flag, timed
from src.errors import UserError

WORK = "src.benchmarks.workloads:InferWork"
STEPS = 5
SCORE_THR = 0.0


@dataclass(frozen=True)
class InferSpec:
    """Describe what to detect with.

    Attributes:
        setting: the detector; it takes batch_size images at a time.
        score_scale: factor on the weight of the layer that gives the scores.
    """

    setting: Setting
    score_scale: float = 1.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `benchmark.py infer`."""
    add_setting_flags(parser)
    parser.add_argument("--steps", type=int, default=STEPS, help="%(default)s")
    parser.add_argument("--score_thr", type=float, default=SCORE_THR, help="%(default)s")
    parser.add_argument("--score_scale", type=float, default=1.0, help="%(default)s")
    add_profile_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print.

    Raises:
        UserError: flags out of range.
        StartError: the process failed.
    """
    if args.steps < 1 or args.score_thr < 0:
        raise UserError(
            f"--steps {args.steps} --score_thr {args.score_thr}: expected 1 or more, 0 or more"
        )
    spec = spec_of(setting_of(args, FULL), args.score_thr, args.score_scale)
    if args.profile:
        return show(args, profile(WORK, spec, spec.setting), profile_text)
    return show(args, measure(spec, args.steps), report)


def spec_of(setting: Setting, score_thr: float = SCORE_THR, score_scale: float = 1.0) -> InferSpec:
    """Return the setting with the threshold, and evaluation batches as large as training ones."""
    batch = setting.load().batch_size
    more = {"test_score_thr": score_thr, "test_batch_size": batch}
    overrides = {**setting.overrides, **more}
    return InferSpec(Setting(setting.config_path, overrides, setting.threads), score_scale)


def measure(spec: InferSpec, steps: int = STEPS) -> dict[str, Any]:
    """Detect `steps` times.

    Returns:
        What `describe`, `machine` and `timed` return, and `image_s` (seconds of one image),
        `score_thr`, `score_scale`, `proposals`, `classes`, `candidates` (boxes of all classes),
        `above_share` (share of them above the threshold), `detections`.
    """
    config = spec.setting.load()
    said = describe(config, spec.setting.threads)
    say(f"infer: {said['image']}, {config.rpn_max_num} proposals; compiling")
    with Child(WORK, spec, spec.setting.threads) as child:
        child.ready()
        flops = forward_flops(config, config.batch_size)
        times, last = timed(child, steps, flops, config.batch_size)
    return {
        **said,
        **times,
        "image_s": round(times["step_s"] / config.batch_size, 4),
        "score_thr": config.test_score_thr,
        "score_scale": spec.score_scale,
        "proposals": config.rpn_max_num,
        "classes": config.num_classes,
        "candidates": last["candidates"],
        "above_share": round(last["above"] / last["candidates"], 4),
        "detections": last["detections"],
        **machine(),
    }


def report(result: dict[str, Any]) -> str:
    """Return the result in words."""
    return "\n".join(
        [
            machine_line(result),
            f"{result['image']}, {result['threads']} thread(s), {result['classes']} classes, "
            f"{result['proposals']} proposals: {result['image_s']:.3f} s an image, "
            f"first {result['first_step_s']:.1f} s, peak memory {result['peak_gb']:.2f} GB",
            f"{result['above_share']:.1%} of {result['candidates']} candidates score above "
            f"{result['score_thr']}; {result['detections']} are left after suppression",
            f"{result['times_mathematics']:.2f} times the mathematics: {result['tflop']:.3g} TFLOP "
            f"at {result['matmul_gflops']:.0f} GFLOP/s of MatMul (3x3 convolution: "
            f"{result['conv_gflops']:.0f} GFLOP/s)",
        ]
    )
