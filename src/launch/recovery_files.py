"""The servers' checkpoints: which are there, which one a start takes, which are put aside.

Names are the engine's: {fl_name}_recovery_iteration_{n}_{YYYYmmdd}_{HHMMSS}.ckpt. Number 0 is the
initial model; file n holds the model after iteration n.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from src.errors import UserError


@dataclass(frozen=True)
class RecoveryFile:
    """One checkpoint of the servers."""

    path: Path
    iteration: int
    stamp: str


def list_recovery_files(folder: Path, fl_name: str) -> list[RecoveryFile]:
    """The job's files in `folder`, newest iteration first, newest of it first."""
    name = re.compile(re.escape(fl_name) + r"_recovery_iteration_(\d+)_(\d{8}_\d{6})\.ckpt")
    found = []
    for path in folder.glob("*.ckpt"):
        match = name.fullmatch(path.name)
        if match and path.is_file():
            found.append(RecoveryFile(path, int(match[1]), match[2]))
    return sorted(found, key=lambda f: (f.iteration, f.stamp), reverse=True)


def recovery_name(fl_name: str, iteration: int) -> str:
    """The engine's file name for the model after `iteration`, made now."""
    stamp = time.strftime("%Y%m%d_%H%M%S")
    return f"{fl_name}_recovery_iteration_{iteration}_{stamp}.ckpt"


def put_aside_earlier_run(folder: Path, fl_name: str) -> Path | None:
    """Move the files that an earlier run left, so that a new one starts from the initial model.

    An initial model (iteration 0) among later files is the sign of an earlier run of this suite:
    later ones go to folder/earlier_1, earlier_2, ... Without it the user has put them there, to
    go on from, and they stay.

    Returns:
        Where they went, or None when nothing was moved.
    """
    files = list_recovery_files(folder, fl_name)
    later = [f for f in files if f.iteration > 0]
    if len(later) in (0, len(files)):
        return None
    number = 1
    while (aside := folder / f"earlier_{number}").exists():
        number += 1
    aside.mkdir()
    for file in later:
        file.path.rename(aside / file.path.name)
    return aside


def require_iterations_left(folder: Path, fl_name: str, iterations: int) -> int:
    """The iteration that a start from the newest file of `folder` begins with.

    Raises:
        UserError: the job's last iteration is done already.
    """
    files = list_recovery_files(folder, fl_name)
    first = files[0].iteration + 1 if files else 1
    if first > iterations:
        raise UserError(
            f"{files[0].path} is of iteration {first - 1}, and fl_iteration_num is {iterations}: "
            "nothing is left to do; raise --fl_iteration_num or give another --checkpoint_dir"
        )
    return first
