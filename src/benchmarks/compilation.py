"""Measure a fresh process up to the end of its first step: import, network, compilation."""

from __future__ import annotations

import argparse
import tempfile
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
from src.benchmarks.step import WORK


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `benchmark.py compile`."""
    add_setting_flags(parser)
    parser.add_argument(
        "--cold",
        action="store_true",
        help="compile the kernels too, which are kept on disk after the first process",
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print.

    Raises:
        UserError: flags out of range.
        StartError: the process failed.
    """
    return show(args, measure(setting_of(args), args.cold), report)


def measure(setting: Setting, cold: bool = False) -> dict[str, Any]:
    """Measure one fresh process; `cold` without the compiled kernels that earlier ones kept.

    Returns:
        What `describe` and `machine` return, and `import_s`, `build_s`, `first_step_s`,
        `second_step_s`, `to_first_step_s` (the first three), `peak_gb`, `cold`.
    """
    said = describe(setting.load(), setting.threads)
    say(f"compile: {said['image']}, batch {said['batch']}, a fresh process")
    with tempfile.TemporaryDirectory(prefix="benchmark_kernels_") as kernels:
        env = {"NUMBA_CACHE_DIR": kernels} if cold else {}
        with Child(WORK, setting, setting.threads, env) as child:
            times = child.ready()
            first, second = (child.call("steps", count=1) for _ in range(2))
            peak_gb = child.call("peak_gb")
    phases = {
        "import_s": times["imported"] - child.started,
        "build_s": times["built"] - times["imported"],
        "first_step_s": first["seconds"][0],
        "second_step_s": second["seconds"][0],
        "to_first_step_s": first["end"] - child.started,
    }
    rounded = {name: round(seconds, 3) for name, seconds in phases.items()}
    return {**said, **rounded, "peak_gb": round(peak_gb, 3), "cold": cold, **machine()}


def report(result: dict[str, Any]) -> str:
    """Return the result in words."""
    return "\n".join(
        [
            machine_line(result),
            f"{result['image']}, batch {result['batch']}, {result['threads']} thread(s)"
            + (", kernels compiled again" if result["cold"] else ""),
            f"fresh process to the end of the first step {result['to_first_step_s']:.1f} s: import "
            f"{result['import_s']:.1f}, network {result['build_s']:.1f}, first step "
            f"{result['first_step_s']:.1f}; second step {result['second_step_s']:.2f} s; peak "
            f"memory {result['peak_gb']:.2f} GB",
        ]
    )
