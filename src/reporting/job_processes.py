"""Which log folders of a worker are of one job: worker_0, and worker_0.1 where it was restarted.

The highest number is the latest. A start renames the folder that it finds, of a restarted worker
as of one of the job before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from src.files import numbered
from src.job.job_start import JobStart
from src.job.log_files import read_log

_ENTERED = re.compile(r"\] (joined|kept the place in) iteration (\d+) of \d+ as silo")
_FINISHED = re.compile(r"\] the job is finished: all (\d+) iterations are done")


@dataclass
class _Process:
    """What a worker's log says of its part in a job.

    Attributes:
        first, last: the iterations that it entered first and last; 0 where it never did.
        kept: the servers knew the silo when it came, from a process before it.
        finished: iterations of the job, where the process saw its end; else 0.
        earlier: it had ended when the job of the folder around began.
    """

    first: int
    last: int
    kept: bool
    finished: int
    earlier: bool


def numbered_folders(folder: Path) -> list[Path]:
    """`folder` behind its earlier ones (folder.1, folder.2, ...), oldest first."""
    return [path for path in numbered(folder) if path.is_dir()] + [folder]


def folders_of_job(folder: Path, started: JobStart | None) -> list[Path]:
    """The folders of a worker's processes in the job that `folder` is of, oldest first.

    Args:
        folder: of the latest process, worker_<n>.
        started: the job's begin; None where the folder around does not tell.
    """
    *earlier, _ = numbered_folders(folder)
    if not earlier:
        return [folder]
    chain, later = [folder], _process(folder, started)
    for path in reversed(earlier):
        before = _process(path, started)
        if not _same_job(before, later, known=started is not None):
            break
        chain.insert(0, path)
        # One that never came in says nothing of the job that it was started for.
        later = before if before.first else later
    return chain


def ended_before(folder: Path, started: JobStart | None) -> bool:
    """Whether a worker's process is known to have ended before the job began."""
    return started is not None and started.is_after(folder / "worker.log")


def _process(folder: Path, started: JobStart | None) -> _Process:
    log = read_log(folder / "worker.log")
    entries = _ENTERED.findall(log)
    finished = _FINISHED.findall(log)
    return _Process(
        first=int(entries[0][1]) if entries else 0,
        last=int(entries[-1][1]) if entries else 0,
        kept=bool(entries) and entries[0][0] != "joined",
        finished=int(finished[-1]) if finished else 0,
        earlier=ended_before(folder, started),
    )


def _same_job(before: _Process, later: _Process, known: bool) -> bool:
    """Whether a process and the one before it, of the same worker, took part in one job.

    Args:
        known: the folder around tells which processes are of an earlier job.
    """
    if before.earlier:
        return False
    if before.finished:
        # A finished job lets nobody in, unless it was given more iterations.
        return later.first > before.finished or bool(later.finished and not later.first)
    if later.kept:
        return True
    if later.first == 1:
        return known and before.last <= 1
    return not before.first > later.first > 0
