"""The global checkpoints of a running job, one by one as they appear."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from src.errors import UserError
from src.job.job_record import FOLDER, WORKER_ROLES, read_record

WORKER_FILE = re.compile(r".+-fast-rcnn-(\d+)epoch\.ckpt")
SERVER_FILE = re.compile(r".+_recovery_iteration_(\d+)_\d{8}_\d{6}\.ckpt")
PLACES = ("", "mindrecord_*/", "ckpt/mindrecord_*/")
# Servers write a recovery file in place: it is whole when it has not grown for so long.
SETTLED_S = 2.0
POLL_S = 0.5


@dataclass(frozen=True)
class GlobalCheckpoint:
    """The global model after `iteration`."""

    iteration: int
    path: Path


def global_checkpoints(folder: Path) -> list[GlobalCheckpoint]:
    """Those in a worker's folder or its ckpt folder, or in the servers' checkpoint_dir, by age.

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
    """The folder that the job was started from, of which `folder` is a part; None: no such."""
    here = folder.absolute()
    return next((base for base in (here, *here.parents) if (base / FOLDER).is_dir()), None)


def job_runs(folder: Path) -> bool:
    """Whether a server or worker of the job of `folder` is alive on this machine."""
    record = read_record(folder)
    return bool(record and (record.running("server") or any(map(record.running, WORKER_ROLES))))


def follow(folder: Path, job: Path | None) -> Iterator[GlobalCheckpoint]:
    """Each checkpoint in `folder` once, those to come as long as the job of `job` runs.

    Args:
        folder: see `global_checkpoints`; a running job may not have made it yet.
        job: see `job_folder`; None gives what is there and ends.

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
    """Whether a file has not been written to for a while; one that is gone counts as settled."""
    try:
        return time.time() - path.stat().st_mtime >= SETTLED_S
    except FileNotFoundError:
        return True
