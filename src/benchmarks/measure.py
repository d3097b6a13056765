"""Share flags, the measured setting, memory and machine data between the benchmarks."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Callable

from src.errors import UserError
from src.model_utils.config import DEFAULT_CONFIG, Config, find_config_file, load_config
from src.printing import print, print_json

# The reference setting: small enough for a step of about a second on two cores.
REFERENCE = {"img_width": 320, "img_height": 192, "batch_size": 2, "backbone": "resnet_v1_50"}
FULL = {"img_width": 1280, "img_height": 768, "batch_size": 1, "backbone": "resnet_v1_50"}
PACKAGES = ("mindspore", "numba", "numpy")


@dataclass(frozen=True)
class Setting:
    """Describe the measured detector and its number of threads; it is sent to other processes.

    Attributes:
        config_path: file of the detector.
        overrides: keys that override it.
        threads: cores for the process.
    """

    config_path: str
    overrides: dict[str, Any]
    threads: int

    def load(self) -> Config:
        """Return the detector's configuration.

        Raises:
            UserError: as `load_config`.
        """
        return load_config(self.config_path, **self.overrides, threads=self.threads)

    def with_threads(self, threads: int) -> Setting:
        """Return this setting with another number of threads."""
        return Setting(**{**asdict(self), "threads": threads})


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every measurement of the detector, and --json."""
    parser.add_argument("--width", type=int, help="of the network's input")
    parser.add_argument("--height", type=int, help="of the network's input")
    parser.add_argument("--batch", type=int, help="images in a batch")
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    parser.add_argument("--config_path", default=DEFAULT_CONFIG, help="the detector")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def setting_of(args: argparse.Namespace, base: dict[str, Any] = REFERENCE) -> Setting:
    """Return the setting that the flags ask for.

    Args:
        args: parsed flags of `add_setting_flags`.
        base: keys for the default configuration; another file is used as it is.

    Raises:
        UserError: no such file, or a value out of range.
    """
    if args.threads < 0:
        raise UserError(f"--threads is {args.threads}, expected 1 or more, or 0 for all cores")
    overrides = dict(base) if args.config_path == DEFAULT_CONFIG else {}
    flags = {"img_width": args.width, "img_height": args.height, "batch_size": args.batch}
    overrides.update({key: value for key, value in flags.items() if value is not None})
    path = str(find_config_file(args.config_path))
    setting = Setting(path, overrides, args.threads or cores())
    setting.load()
    return setting


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def say(text: str) -> None:
    """Print progress, separate from the result."""
    print(text, file=sys.stderr, flush=True)


def show(
    args: argparse.Namespace, result: dict[str, Any], report: Callable[[dict[str, Any]], str]
) -> int:
    """Print a result, as one JSON object or in words; return exit code 0."""
    if args.json:
        print_json(result, indent=None)
    else:
        print(*report(result).split("\n"), sep="\n")
    return 0


def memory_gb(field: str) -> float:
    """Return VmRSS (resident now) or VmHWM (its peak) of this process, in 10**9 bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise ValueError(f"{field} is not in /proc/self/status")


def reset_peak() -> None:
    """Reset VmHWM to what is resident now (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def machine() -> dict[str, Any]:
    """Return CPU, cores and versions."""
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


def machine_line(where: dict[str, Any]) -> str:
    """Format `machine()` as a line for people."""
    versions = ", ".join(f"{name} {where[name]}" for name in ("python", *PACKAGES))
    return f"{where['cpu']}, {where['cores']} cores; {versions}"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def describe(config: Config, threads: int) -> dict[str, Any]:
    """Return what was measured, for the result."""
    return {
        "image": f"{config.img_width}x{config.img_height}",
        "batch": config.batch_size,
        "backbone": config.backbone,
        "threads": threads,
    }
