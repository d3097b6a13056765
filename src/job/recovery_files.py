"""The servers' checkpoints: which exist, which one a start uses, which are put aside.

The engine defines their names: {fl_name}_recovery_iteration_{n}_{YYYYmmdd}_{HHMMSS}.ckpt. Number 0
is the initial model; file n holds the model after iteration n.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import UserError, user_path
from src.files import digest_of, parsed_json, whole_file
from src.weights.ckpt_file import fault_of, look_into

# The entry of a complete detector that records an initial model's origin.
ORIGIN_NAME = "suite.initial"


@dataclass(frozen=True)
class RecoveryFile:
    """One checkpoint of the servers."""

    path: Path
    iteration: int
    stamp: str


@dataclass(frozen=True)
class InitialOrigin:
    """What an initial model was made from, as recorded in the complete detector next to it.

    Attributes:
        file: name of the servers' file.
        seed: the seed of the random weights.
        pre_trained: path of the checkpoint, "" for none.
        digest: digest of that file's content, see `digest_of`.
        launcher: whether the server launcher made the model itself because there was none.
    """

    file: str
    seed: int
    pre_trained: str = ""
    digest: str = ""
    launcher: bool = False

    def packed(self) -> np.ndarray:
        """Return the origin as an entry of a checkpoint, (N,) uint8."""
        return np.frombuffer(json.dumps(asdict(self)).encode(), np.uint8)

    def words(self) -> str:
        """Return what the model was made from, as flags."""
        return f"--pre_trained={self.pre_trained}" if self.pre_trained else f"--seed={self.seed}"


def initial_origin(config: Any, servers: Path, launcher: bool) -> InitialOrigin:
    """Return the origin of an initial model that is made with `config`.

    Args:
        servers: the servers' file.
        launcher: see `InitialOrigin`.

    Raises:
        UserError: `pre_trained` cannot be read.
    """
    path = user_path(config.pre_trained) if config.pre_trained else None
    try:
        digest = digest_of(path) if path else ""
    except OSError as error:
        raise UserError(f"pre_trained: {path}: {error.strerror}") from error
    return InitialOrigin(servers.name, config.seed, str(path or ""), digest, launcher)


def unpack_origin(record: bytes | None) -> InitialOrigin | None:
    """Return the origin in an entry of a checkpoint; None if there is no readable one."""
    try:
        return None if record is None else InitialOrigin(**parsed_json(record.decode()))
    except (TypeError, ValueError):
        return None


def whole_detector(folder: Path, fl_name: str) -> Path:
    """Return the path of the complete detector of the job's initial model."""
    return folder / f"{fl_name}_initial.ckpt"


def _name_of(fl_name: str) -> re.Pattern[str]:
    return re.compile(re.escape(fl_name) + r"_recovery_iteration_(\d+)_(\d{8}_\d{6})\.ckpt")


def list_recovery_files(folder: Path, fl_name: str) -> list[RecoveryFile]:
    """Return the job's files in `folder`, newest iteration first, newest file of each first."""
    name = _name_of(fl_name)
    found = []
    for path in folder.glob("*.ckpt"):
        match = name.fullmatch(path.name)
        if match and path.is_file():
            found.append(RecoveryFile(path, int(match[1]), match[2]))
    return sorted(found, key=lambda f: (f.iteration, f.stamp), reverse=True)


def untaken_files(folder: Path, fl_name: str) -> list[str]:
    """Return a sentence for each file that starts like a recovery file's name but is not one.

    Case and file extension do not matter.
    """
    begin = f"{fl_name}_recovery".lower()
    form = f"{fl_name}_recovery_iteration_<number>_<YYYYmmdd>_<HHMMSS>.ckpt"
    sentences = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        fits = _name_of(fl_name).fullmatch(path.name)
        if not path.name.lower().startswith(begin) or (fits and path.is_file()):
            continue
        number = re.search(r"iteration_(\d+)", path.name, re.IGNORECASE)
        example = recovery_name(fl_name, int(number[1]) if number else 0)
        fault = f"a recovery file is named {form}; rename it, for example to {example}"
        fault = "it is no file, or a link to none" if fits else fault
        sentences.append(f"{path} is not taken: {fault}, or move it out of the folder")
    return sentences


def require_names(folder: Path, fl_name: str) -> None:
    """Refuse to start from random weights if a file seems intended as the start.

    Raises:
        UserError: names the first file that is not accepted because of its name.
    """
    for sentence in untaken_files(folder, fl_name):
        raise UserError(f"{sentence}; without it the job would start from random weights")


def foreign_checkpoints(folder: Path, fl_name: str) -> list[str]:
    """Return the names of other checkpoints in `folder`: servers read none of them."""
    own = re.compile(re.escape(fl_name) + r"_(recovery.*|initial\.ckpt)", re.IGNORECASE)
    names = sorted(p.name for p in folder.glob("*.ckpt") if not p.name.startswith("."))
    return [name for name in names if not own.fullmatch(name)]


def usable_files(
    folder: Path, fl_name: str, leave_out: Collection[RecoveryFile] = ()
) -> tuple[list[RecoveryFile], list[str]]:
    """Return the job's files in `folder` from the newest intact one on; warn of newer ones.

    Files older than the newest intact one are not read.

    Args:
        leave_out: files that will have been moved by then.

    Raises:
        UserError: there are files, and none of them is intact.
    """
    files = [f for f in list_recovery_files(folder, fl_name) if f not in leave_out]
    warnings: list[str] = []
    first = next((f.path for f in files if f.iteration == 0), None)
    initial = None
    if first is not None:
        content, fault = look_into(first)
        initial = None if fault else content
    for number, file in enumerate(files):
        fault = fault_of(file.path, initial)
        if not fault:
            return files[number:], warnings
        warnings.append(f"{file.path} is left out: {fault}")
    if files:
        raise UserError(
            f"{folder}: none of the {len(files)} recovery files of {fl_name} is whole "
            f"({files[-1].path.name}: {fault}); put back one that is, or move them away and start "
            "again, with --pre_trained=<a worker's newest checkpoint> to go on from its weights"
        )
    return [], []


def recovery_name(fl_name: str, iteration: int) -> str:
    """Return the engine's file name for the model after `iteration`, with the current time."""
    stamp = time.strftime("%Y%m%d_%H%M%S")
    return f"{fl_name}_recovery_iteration_{iteration}_{stamp}.ckpt"


def files_of_earlier_run(folder: Path, fl_name: str) -> list[RecoveryFile]:
    """Return files of an earlier run; without them a new run starts from the initial model.

    An initial model (iteration 0) among later files indicates an earlier run of this suite. Without
    it the user has put the files there, to continue from them.
    """
    files = list_recovery_files(folder, fl_name)
    later = [f for f in files if f.iteration > 0]
    return later if len(later) < len(files) else []


def put_aside_earlier_run(folder: Path, fl_name: str, more: Collection[Path] = ()) -> Path | None:
    """Move `files_of_earlier_run` to folder/earlier_1, earlier_2, ...

    Args:
        more: files to move with them.

    Returns:
        The folder they were moved to, or None if nothing was moved.
    """
    going = [*(file.path for file in files_of_earlier_run(folder, fl_name)), *more]
    if not going:
        return None
    number = 1
    while (aside := folder / f"earlier_{number}").exists():
        number += 1
    aside.mkdir()
    for path in going:
        path.rename(aside / path.name)
    return aside


def require_iterations_left(
    folder: Path,
    fl_name: str,
    iterations: int,
    leave_out: Collection[RecoveryFile] = (),
    resume: bool = False,
) -> int:
    """Return the iteration that a start from the newest file of `folder` begins with.

    Args:
        leave_out: files that will have been moved by then.
        resume: a finished job may be resumed, for silos to get its last model; the result is then
            more than `iterations`.

    Raises:
        UserError: the job's last iteration is done already, or no file is intact.
    """
    files, _ = usable_files(folder, fl_name, leave_out)
    first = files[0].iteration + 1 if files else 1
    if first > iterations and not resume:
        raise UserError(
            f"{files[0].path} is of iteration {first - 1}, and fl_iteration_num is {iterations}: "
            f"nothing is left to do; train on with --resume --fl_iteration_num={first + 9} (at the "
            "workers too), or begin a new job in another --checkpoint_dir"
        )
    return first


def begin_from_newest(folder: Path, fl_name: str) -> list[str]:
    """Make the newest file the initial model, and put those of the iterations before it aside.

    This is for a job that counts from 1 again: a server that starts later uses the highest number.

    Returns:
        Lines that describe what was done.
    """
    files, warnings = usable_files(folder, fl_name)
    if not files or files[0].iteration == 0:
        return warnings
    initial = folder / recovery_name(fl_name, 0)
    with whole_file(initial, durable=True) as partial:
        shutil.copyfile(files[0].path, partial)
    aside = put_aside_earlier_run(folder, fl_name)
    return [*warnings, f"its initial model is {initial}; earlier recovery files are in {aside}"]
