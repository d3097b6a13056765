"""Run all measurements of the detector in sequence, and write their table to a page."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from src.benchmarks import compilation, data, infer, step
from src.benchmarks.measure import (
    FULL,
    add_setting_flags,
    machine_line,
    say,
    setting_of,
    show,
)
from src.reporting.marked_page import split_page, write_table

WORKERS = 2


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `benchmark.py all`."""
    add_setting_flags(parser)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this file")


def run(args: argparse.Namespace) -> int:
    """Measure, print and write.

    Raises:
        UserError: the page is not there or has no place for the table.
        StartError: a process failed.
    """
    if args.write:
        split_page(args.write)
    start = time.monotonic()
    result = measure(args)
    say(f"took {time.monotonic() - start:.0f} s")
    if args.write:
        write_table(args.write, table(result))
        say(f"{args.write}: table written")
    return show(args, result, table)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the results by command, and `data_by_step`: images read per image trained."""
    setting, full = setting_of(args), setting_of(args, FULL)
    plan = data.plan_of(data.IMAGE_SIZE)
    result: dict[str, Any] = {
        "compile": compilation.measure(setting),
        "step": step.measure(setting, step.STEPS, WORKERS),
        "step_full": step.measure(full, step.FULL_STEPS),
        "infer": infer.measure(infer.spec_of(full)),
        "data": data.measure(setting, plan, data.IMAGES),
    }
    ratio = result["data"]["images_per_s"] / result["step"]["images_per_s"]
    return {**result, "data_by_step": round(ratio, 1)}


def table(result: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    one, full, found = result["step"], result["step_full"], result["infer"]
    lines = [
        f"{machine_line(one)}.",
        "",
        "| what | seconds | images/s | times the mathematics | first, compiled | peak memory |",
        "|---|---|---|---|---|---|",
        _row("training step", one),
        _row("training step", full),
        _row(f"detection, {found['classes']} classes, {found['proposals']} proposals", found),
        "",
        "| what | measured |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _more(result)),
    ]
    return "\n".join(lines)


def _row(name: str, result: dict[str, Any]) -> str:
    return (
        f"| {name}, {result['image']}, batch {result['batch']}, {result['threads']} thread(s) "
        f"| {result['step_s']:.3g} | {result['images_per_s']:.2f} "
        f"| {result['times_mathematics']:.2f} | {result['first_step_s']:.1f} s "
        f"| {result['peak_gb']:.2f} GB |"
    )


def _more(result: dict[str, Any]) -> list[tuple[str, str]]:
    one, start, read = result["step"], result["compile"], result["data"]
    found = result["infer"]
    return [
        (
            "fresh process to the end of the first step",
            f"{start['to_first_step_s']:.1f} s: import {start['import_s']:.1f}, network "
            f"{start['build_s']:.1f}, first step {start['first_step_s']:.1f}",
        ),
        (
            f"{one['workers']} workers of {one['threads_each']} thread(s) at the same time, "
            f"next to one of {one['threads']}",
            f"{one['together_steps_per_s']:.2f} and {one['alone_steps_per_s']:.2f} steps/s: ratio "
            f"{one['ratio']:.2f}",
        ),
        (
            "MatMul and 3x3 convolution of MindSpore, best rate",
            f"{one['matmul_gflops']:.0f} and {one['conv_gflops']:.0f} GFLOP/s",
        ),
        (
            "detection: candidates that score above the threshold",
            f"{found['above_share']:.0%} of {found['candidates']}, threshold "
            f"{found['score_thr']}",
        ),
        (
            f"JPEG files of {read['jpeg']} to MindRecord",
            f"{read['convert_images_per_s']:.0f} images/s, peak memory "
            f"{read['convert_peak_gb']:.2f} GB",
        ),
        (
            f"MindRecord to batches at {read['image']}",
            f"{read['images_per_s']:.0f} images/s, {result['data_by_step']:.0f} times what the "
            "training step takes",
        ),
    ]
