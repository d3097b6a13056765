"""Check the machine: Python, packages, device, memory."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from src.errors import UserError
from src.job.checks import WARN, Check, Finding
from src.model_utils.config import PROJECT_DIR
from src.weights.parameter_shapes import federated_share, model_bytes

PYTHON = (3, 9)

# Measured peaks in bytes: a worker with the tiny detector takes 0.6 GB, with the full one 2.6 at
# 320x192 and batch 2, and 7 at 1280x768 and batch 1; a server with the full model up to 3.0.
PROCESS_BYTES = 0.55e9  # Python, MindSpore, the engine
WORKER_PER_MODEL = 8.5  # weights, gradients, momentum, messages, compilation
SERVER_PER_MODEL = 15.0
# Models that were added to those peaks: the last good one, with which the next one is compared.
LAST_GOOD = 1
BYTES_PER_PIXEL = 5100.0  # for each pixel of a batch, with the full detector's 256 channels
FULL_CHANNELS = 256


def machine_checks() -> list[Check]:
    """Return the checks of what every role needs."""
    return [Check("python", python_version), Check("packages", package_versions)]


def python_version() -> str:
    """Raise a UserError if this is not the Python version that the engine's wheels exist for."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info[:2] != PYTHON:
        raise UserError(
            f"Python {found}, expected {PYTHON[0]}.{PYTHON[1]}, which the engine's wheels are for: "
            "source .venv/bin/activate, or make install"
        )
    return found


def package_versions() -> str | Finding:
    """Compare the installed packages with those that requirements.txt pins.

    Raises:
        UserError: one is missing.
    """
    wanted = pinned_versions(PROJECT_DIR / "requirements.txt")
    found = {name: _installed(name) for name in wanted}
    missing = [name for name, version in found.items() if not version]
    if missing:
        raise UserError(
            f"{sys.executable} has no {', '.join(missing)}: run make install in {PROJECT_DIR}, "
            "then source .venv/bin/activate"
        )
    other = [
        f"{name} {found[name]} (tested with {version})"
        for name, version in wanted.items()
        if found[name] != version
    ]
    if other:
        return Finding(WARN, "packages", f"{', '.join(other)}: make install installs the tested")
    return f"{len(wanted)} packages as in requirements.txt, mindspore {found['mindspore']}"


def pinned_versions(path: Path) -> dict[str, str]:
    """Return the version of each package in the lines `name==version` of a requirements file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pins = (re.match(r"([\w.-]+)==([\w.]+)", line) for line in lines)
    return {pin[1]: pin[2] for pin in pins if pin}


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def threads_each(threads: int, processes: int) -> int:
    """Return the threads of each of `processes` that share this machine; 0 divides its cores."""
    return threads or max(1, (os.cpu_count() or 1) // processes)


def device(target: str, workers: int, threads: int) -> str | Finding:
    """Check that the CPU has a core for each worker; workers ask for other devices themselves."""
    cores = os.cpu_count() or 1
    if target != "CPU":
        return f"{target}: each worker asks for it at its start"
    if workers > cores:
        return Finding(
            WARN,
            "device",
            f"{workers} workers share {cores} CPU core(s) and take turns; start fewer on this "
            "machine (--local_worker_num)",
        )
    return f"CPU, {cores} cores, {threads_each(threads, workers)} for each of {workers}"


def worker_bytes(config: Any, kept: int = 0) -> float:
    """Estimate one worker's peak memory roughly from the detector's and the images' size.

    Args:
        kept: number of arrays of the model's size that the aggregation algorithm keeps.
    """
    # Federated weights alone: those of the checkpoint that it starts from, those of the last round
    # from which differential privacy takes the update.
    copies = LAST_GOOD + bool(config.pre_trained) + (config.dp_clip_norm > 0)
    models = WORKER_PER_MODEL + kept + copies * federated_share(config)
    models *= model_bytes(config)
    return PROCESS_BYTES + models + config.batch_size * image_bytes(config)


def image_bytes(config: Any) -> float:
    """Return a rough estimate of the memory that each image of a training batch takes."""
    width = max(*config.resnet_out_channels[:1], config.fpn_out_channels) / FULL_CHANNELS
    return config.img_width * config.img_height * BYTES_PER_PIXEL * width


def server_bytes(config: Any, held: int = 1) -> float:
    """Estimate one server's peak memory roughly, with `held` arrays of the model's size."""
    models = held * federated_share(config)
    return PROCESS_BYTES + (SERVER_PER_MODEL + LAST_GOOD) * models * model_bytes(config)


def memory(what: str, needed: float) -> str | Finding:
    """Compare the machine's free memory with an estimate; never fatal, since it is an estimate.

    Args:
        what: the processes, as text before "need about".
        needed: bytes.
    """
    free = psutil.virtual_memory().available
    text = f"{what} need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    if needed <= free:
        return text
    return Finding(
        WARN,
        "memory",
        f"{text}: start fewer processes here, or choose a smaller batch_size or image size",
    )
