"""Checks that a disk has room for the files of a job."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from src.errors import UserError, user_path


def require_disk(folder: Path, needed: int, what: str) -> None:
    """Raise a UserError if the disk of `folder` has fewer than `needed` bytes free."""
    disk_room(folder, needed, what)


def disk_room(folder: Path, needed: int, what: str) -> str:
    """Describe the free and the needed disk space of `folder`, which need not exist yet.

    Raises:
        UserError: there is too little.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"{folder}: {what} need {_amount(needed)}, and {_amount(free)} are free; "
            "free some, choose a folder on another disk, or keep fewer (--checkpoints_kept)"
        )
    return f"{what} need {_amount(needed)}, {_amount(free)} are free in {there}"


def worker_files(config: Any, iterations: int, workers: int) -> int:
    """Return how many checkpoints this machine's workers will have written at the job's end."""
    if not config.save_checkpoint:
        return 0
    kept = min(iterations, config.checkpoints_kept or iterations)
    return (kept + bool(config.run_eval)) * workers


def kept_files(folder: Path, user: str) -> list[Path]:
    """Return the checkpoints of iterations in `folder`, oldest iteration first."""
    name = re.compile(re.escape(user) + r"-fast-rcnn-(\d+)epoch\.ckpt")
    found = [(match, path) for path in folder.glob("*.ckpt") if (match := name.match(path.name))]
    return [path for _, path in sorted(found, key=lambda pair: int(pair[0][1]))]


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def data_folder(config: Any) -> Path:
    """Return the folder that holds mindrecord_0, mindrecord_1, ..."""
    return user_path(config.dataset_path or Path(config.mindrecord_dir).parent)


def shard_of(config: Any) -> Path:
    """Return the folder of the MindRecord of worker `config.user_id`."""
    return data_folder(config) / f"mindrecord_{config.user_id}"
