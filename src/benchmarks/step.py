"""Measure the training step of the detector, on synthetic data in memory.

The FLOP bound, printed as "the mathematics", is the time that the convolutions and matrix products
of the step would take at the best rate of MindSpore's own matrix product in the same process. The
result gives the step as a multiple of it.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import psutil

from src.benchmarks.children import Child, children
from src.benchmarks.flops import training_flops
from src.benchmarks.measure import (
    FULL,
    REFERENCE,
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
from src.errors import UserError
from src.launch.preflight.cost import StepCost
from src.launch.preflight.machine import threads_each
from src.model_utils.config import Config, find_config_file

WORK = "src.benchmarks.workloads:StepWork"
STEPS, FULL_STEPS, FEW_STEPS = 10, 3, 2
TURNS = 3


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `benchmark.py step`."""
    add_setting_flags(parser)
    parser.add_argument("--full", action="store_true", help="1280x768, batch 1, 3 steps")
    parser.add_argument("--steps", type=int, help=f"default {STEPS}")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="so many processes at the same time, next to one that has all cores",
    )
    add_profile_flag(parser)


def add_profile_flag(parser: argparse.ArgumentParser) -> None:
    """Add --profile, for measurements with steps."""
    parser.add_argument(
        "--profile", action="store_true", help="where the time goes, by operator; nothing else"
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print.

    Raises:
        UserError: flags out of range, or too little memory.
        StartError: a process failed.
    """
    setting = setting_of(args, FULL if args.full else REFERENCE)
    steps = args.steps
    if steps is None:
        steps = FULL_STEPS if args.full else STEPS
    if steps < 1 or args.workers < 1:
        raise UserError(f"--steps {steps} --workers {args.workers}: expected 1 or more for both")
    if args.profile:
        return show(args, profile(WORK, setting, setting), profile_text)
    return show(args, measure(setting, steps, args.workers), report)


def measure(setting: Setting, steps: int, workers: int = 1) -> dict[str, Any]:
    """Measure steps of one process; with more `workers`, also those of that many side by side.

    Returns:
        What `describe` and `machine` return, and `step_s` (median), `steps_s` (each),
        `first_step_s` (compilation included), `images_per_s`, `peak_gb`, `loss`, `tflop`,
        `matmul_gflops`, `conv_gflops`, `mathematics_s`, `times_mathematics`; with workers
        `workers` and what `_beside` returns.
    """
    config = setting.load()
    said = describe(config, setting.threads)
    say(f"step: {said['image']}, batch {said['batch']}, {setting.threads} thread(s); compiling")
    with Child(WORK, setting, setting.threads) as child:
        child.ready()
        times, last = timed(child, steps, training_flops(config), config.batch_size)
        result = {**said, **times, "loss": last["loss"]}
        if workers > 1:
            result.update(_beside(child, setting, workers, steps, result["peak_gb"]))
    return {**result, **machine()}


def timed(
    child: Child, steps: int, flops: int, images: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure a child's steps, and the machine's rates before, between and after them.

    Peak memory is taken before the first rate, whose matrices are not the workload's.

    Args:
        child: ready, with the methods `steps`, `calibrate`, `peak_gb`.
        steps: number to time, after one that compiles and one more.
        flops: operations of one step.
        images: images in one step.

    Returns:
        `summary` with `first_step_s` and `peak_gb`, and the child's last answer.
    """
    first = child.call("steps", count=1)["seconds"][0]
    say(f"the first one took {first:.1f} s, compilation included")
    child.call("steps", count=1)
    peak_gb = child.call("peak_gb")
    rates, seconds = [child.call("calibrate")], []
    for count in filter(None, (steps // 2, steps - steps // 2)):
        last = child.call("steps", count=count)
        seconds += last["seconds"]
        rates.append(child.call("calibrate"))
        say(f"{len(seconds)} of {steps}: {statistics.median(seconds):.3f} s")
    result = summary(seconds, rates, flops, images)
    return {**result, "first_step_s": round(first, 3), "peak_gb": round(peak_gb, 3)}, last


def summary(
    seconds: list[float], rates: list[dict[str, float]], flops: int, images: int
) -> dict[str, Any]:
    """Compare times with the FLOP bound: `flops` at the best rate of the matrix product."""
    median = statistics.median(seconds)
    best = {name: max(rate[name] for rate in rates) for name in rates[0]}
    mathematics = flops / best["matmul_gflops"] / 1e9
    return {
        "step_s": round(median, 4),
        "steps_s": [round(one, 4) for one in seconds],
        "images_per_s": round(images / median, 3),
        "tflop": round(flops / 1e12, 6),
        **{name: round(rate, 1) for name, rate in best.items()},
        "mathematics_s": round(mathematics, 6),
        "times_mathematics": round(median / mathematics, 3),
    }


def _beside(
    alone: Child, setting: Setting, workers: int, steps: int, peak_gb: float
) -> dict[str, Any]:
    """Measure the throughput of `workers` processes at once, and of one alone, in turns.

    Returns:
        `workers`, `threads_each`, `together_steps_per_s`, `alone_steps_per_s`, `ratio` of the two.

    Raises:
        UserError: too little memory for all.
    """
    there = psutil.virtual_memory().available / 1e9
    if there < workers * peak_gb:
        raise UserError(
            f"--workers={workers} needs about {workers * peak_gb:.0f} GB more and {there:.0f} GB "
            "are available; give fewer, or a smaller --width, --height or --batch"
        )
    threads = max(1, setting.threads // workers)
    say(f"{workers} processes with {threads} thread(s) each: compiling")
    specs = [setting.with_threads(threads)] * workers
    count = max(2, steps // TURNS)
    one, all_of_them = [], []
    with children(WORK, specs, threads) as together:
        _side_by_side(together, 1)
        for turn in range(TURNS):
            one.append(_side_by_side([alone], count))
            all_of_them.append(_side_by_side(together, count))
            say(
                f"turn {turn + 1} of {TURNS}: {one[-1]:.2f} steps/s alone, "
                f"{all_of_them[-1]:.2f} together"
            )
    ratio = statistics.median(all_of_them) / statistics.median(one)
    return {
        "workers": workers,
        "threads_each": threads,
        "alone_steps_per_s": round(statistics.median(one), 4),
        "together_steps_per_s": round(statistics.median(all_of_them), 4),
        "ratio": round(ratio, 3),
    }


def cost_of_steps(config: Config) -> StepCost:
    """Measure what steps cost if this machine's workers train side by side, as they will.

    Args:
        config: the worker launcher's, with `given_flags`.

    Raises:
        UserError, StartError: as `Child.answer`.
    """
    workers = config.local_worker_num
    threads = threads_each(config.threads, workers)
    flags = {key: getattr(config, key) for key in config.given_flags if key != "threads"}
    setting = Setting(str(find_config_file(config.config_path)), flags, threads)
    say(f"{workers} process(es) with {threads} thread(s) each: compiling, then {FEW_STEPS} steps")
    with children(WORK, [setting] * workers, threads) as together:
        first_s = workers / _side_by_side(together, 1)
        _side_by_side(together, 1)
        return StepCost(workers / _side_by_side(together, FEW_STEPS), first_s)


def _side_by_side(processes: list[Child], count: int) -> float:
    """Return steps a second of all processes, `count` each, from first begin to last end."""
    for process in processes:
        process.ask("steps", count=count)
    answers = [process.answer() for process in processes]
    seconds = max(a["end"] for a in answers) - min(a["begin"] for a in answers)
    return len(processes) * count / seconds


def report(result: dict[str, Any]) -> str:
    """Return the result in words."""
    lines = [
        machine_line(result),
        f"{result['image']}, batch {result['batch']}, {result['threads']} thread(s): "
        f"step {result['step_s']:.3f} s ({min(result['steps_s']):.3f} to "
        f"{max(result['steps_s']):.3f}), {result['images_per_s']:.2f} images/s, first step "
        f"{result['first_step_s']:.1f} s, peak memory {result['peak_gb']:.2f} GB",
        f"the mathematics: {result['tflop']:.3g} TFLOP at {result['matmul_gflops']:.0f} GFLOP/s "
        f"of MatMul: {result['mathematics_s']:.3g} s (3x3 convolution: "
        f"{result['conv_gflops']:.0f} GFLOP/s)",
        f"a step takes {result['times_mathematics']:.2f} times the mathematics",
    ]
    if "ratio" in result:
        lines.append(
            f"{result['workers']} processes of {result['threads_each']} thread(s) at the same "
            f"time: {result['together_steps_per_s']:.3f} steps/s; one with all: "
            f"{result['alone_steps_per_s']:.3f}; ratio {result['ratio']:.2f}"
        )
    return "\n".join(lines)
