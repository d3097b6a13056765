"""Run tools/evaluate.py after its command line is read."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspore import nn

from src.commands.load_detector import load_detector
from src.data.image_check import BrokenImageError
from src.errors import UserError
from src.evaluation.class_tables import class_table, confusion_table, text_lines
from src.evaluation.evaluator import Evaluation, Evaluator
from src.evaluation.matching import IOU, SCORE
from src.evaluation.metrics import figures_line, figures_table, rate
from src.evaluation.validation_set import open_validation
from src.FasterRcnn.faster_rcnn_resnet import Faster_Rcnn_Resnet
from src.files import append_line, reason, write_whole
from src.job.job_record import FOLDER, WORKER_ROLES, read_record
from src.model_utils.config import Config
from src.model_utils.device_adapter import use_device
from src.printing import print
from src.progress import progress
from src.weights.ckpt_file import fault_of

WORKER_FILE = re.compile(r".+-fast-rcnn-(\d+)epoch\.ckpt")
SERVER_FILE = re.compile(r".+_recovery_iteration_(\d+)_\d{8}_\d{6}\.ckpt")
PLACES = ("", "mindrecord_*/", "ckpt/mindrecord_*/")
# Servers write a recovery file in place: it is complete when it has not grown for this long.
SETTLED_S = 2.0
POLL_S = 0.5


@dataclass(frozen=True)
class GlobalCheckpoint:
    """Describe the global model after `iteration`."""

    iteration: int
    path: Path


def global_checkpoints(folder: Path) -> list[GlobalCheckpoint]:
    """Return the checkpoints in a worker's folder, its ckpt folder or a checkpoint_dir, by age.

    A worker's file k is of iteration k + 1. The model that a job starts from has iteration 0.
    """
    found = []
    for path in sorted(path for place in PLACES for path in folder.glob(f"{place}*.ckpt")):
        worker, server = WORKER_FILE.fullmatch(path.name), SERVER_FILE.fullmatch(path.name)
        if worker:
            found.append(GlobalCheckpoint(int(worker[1]) + 1, path))
        elif server:
            found.append(GlobalCheckpoint(int(server[1]), path))
    return sorted(found, key=lambda checkpoint: (checkpoint.iteration, checkpoint.path.name))


def job_folder(folder: Path) -> Path | None:
    """Return the folder that the job was started from and that contains `folder`, or None."""
    here = folder.absolute()
    return next((base for base in (here, *here.parents) if (base / FOLDER).is_dir()), None)


def job_runs(folder: Path) -> bool:
    """Return whether a server or worker of the job of `folder` is alive on this machine."""
    record = read_record(folder)
    return bool(record and (record.running("server") or any(map(record.running, WORKER_ROLES))))


def follow(folder: Path, job: Path | None) -> Iterator[GlobalCheckpoint]:
    """Yield each checkpoint in `folder` once, including new ones while the job of `job` runs.

    Args:
        folder: see `global_checkpoints`; a running job may not have made it yet.
        job: see `job_folder`; None yields what is there and ends.

    Raises:
        UserError: no such folder, and no running job.
    """
    if not folder.is_dir() and not (job and job_runs(job)):
        raise UserError(f"--watch {folder}: no such folder, and no running job around it")
    seen: set[GlobalCheckpoint] = set()
    while True:
        # Asked first: what a job writes last is then still found.
        running = job is not None and job_runs(job)
        new = [
            checkpoint
            for checkpoint in global_checkpoints(folder)
            if checkpoint not in seen and (settled(checkpoint.path) or not running)
        ]
        seen.update(new)
        yield from new
        if not running:
            return
        if not new:
            time.sleep(POLL_S)


def settled(path: Path) -> bool:
    """Return whether a file has not been written to for a while, or is gone."""
    try:
        return time.time() - path.stat().st_mtime >= SETTLED_S
    except FileNotFoundError:
        return True


def evaluate_checkpoint(config: Config) -> int:
    """Evaluate `config.checkpoint` and print its metrics; return the exit code.

    Args:
        config: keys of default_config.yaml (val_set names the images) and the command's flags.

    Raises:
        UserError: checkpoint, images or configuration is unusable.
    """
    net, evaluator = prepared(config)
    print(load_detector(net, config, config.checkpoint, config.frozen_from), flush=True)
    found = measured(evaluator)
    record = {"checkpoint": str(config.checkpoint), **found.record(), "time": time.time()}
    print("", *figures_table(found.figures), "", *class_lines(record), "", sep="\n")
    print(f"took {found.seconds:.1f} s{rate(record)}")
    if config.output:
        write(config.output, record)
    if config.results:
        write(config.results, found.results)
    return 0


def class_lines(record: dict[str, Any]) -> list[str]:
    """Return the table of the classes and the confusion table as lines."""
    confusion = text_lines(confusion_table(record))
    where = f"at a score of {SCORE:g} or more and an IoU of {IOU:g} or more"
    heading = ["", f"objects by the class that was detected, {where}:"] if confusion else []
    return [*text_lines(class_table(record)), *heading, *confusion]


def watch(config: Config) -> int:
    """Evaluate each global checkpoint in `config.watch` as it appears, until the job has ended."""
    net, evaluator = prepared(config)
    job = job_folder(config.watch) or job_folder(Path())
    count = 0
    for checkpoint in follow(config.watch, job):
        record = evaluated(checkpoint, net, evaluator, config)
        if record is None:
            continue
        count += 1
        print(figures_line(record), flush=True)
        if config.output:
            append(config.output, record)
    print(f"{count} checkpoints of {config.watch} evaluated; no job runs there any more")
    return 0


def evaluated(
    checkpoint: GlobalCheckpoint, net: nn.Cell, evaluator: Evaluator, config: Config
) -> dict[str, Any] | None:
    """Return a line of metrics.jsonl for a checkpoint; None where it is broken or was removed."""
    fault = fault_of(checkpoint.path) if checkpoint.path.exists() else ""
    if fault:
        print(f"WARNING: {checkpoint.path} is left out: {fault}", flush=True)
        return None
    try:
        load_detector(net, config, checkpoint.path, config.frozen_from)
    except UserError:
        if checkpoint.path.exists():
            raise
        print(f"{checkpoint.path.name} was removed before it could be read", flush=True)
        return None
    found = measured(evaluator).record()
    path = str(checkpoint.path)
    return {"iteration": checkpoint.iteration, **found, "time": time.time(), "checkpoint": path}


def prepared(config: Config) -> tuple[nn.Cell, Evaluator]:
    """Return the network without its weights, and its evaluator; print what it is measured on."""
    for path in (config.output, config.results):
        if path is not None and not path.absolute().parent.is_dir():
            raise UserError(f"{path}: its folder does not exist; make it first")
    use_device(config.device_target, config.device_id, config.threads)
    data = open_validation(config)
    print(data, flush=True)
    net = Faster_Rcnn_Resnet(config)
    return net, Evaluator(config, net, data)


def measured(evaluator: Evaluator) -> Evaluation:
    """Evaluate once with a progress display.

    Raises:
        UserError: an image is gone or cannot be decoded.
    """
    total = len(evaluator.data)
    try:
        return evaluator.run(lambda images: shown(images, total))
    except (OSError, BrokenImageError) as error:
        raise UserError(f"{evaluator.data.source}: {error}") from error


def shown(images: Iterable, total: int) -> Iterator:
    """Yield `images` with a progress display."""
    # The counter first: when it ends, the display is closed.
    return (image for _, image in zip(progress(range(total), "evaluated", "image"), images))


def write(path: Path, value: Any) -> None:
    """Write a JSON file, completely or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_whole(path, json.dumps(value) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {reason(error)}") from error
    print(f"written to {path}")


def append(path: Path, record: dict[str, Any]) -> None:
    """Append a JSON line.

    Raises:
        UserError: it cannot be written.
    """
    try:
        append_line(path, json.dumps(record))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {reason(error)}") from error
