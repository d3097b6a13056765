"""When the job of a folder began, and which log folders belong to the job before it.

Times in logs are unreliable: they use each role's time zone, and clocks are set back. So the end of
each log is noted when the job begins: a log that still ends so belongs to an earlier job.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from src.job.job_record import FOLDER, read_status, update_record, write_json
from src.job.log_files import log_parts

FILE = "job_start.json"
FORMAT = "%Y-%m-%d %H:%M:%S"
# Files of a role that grow while it runs; the last one is the engine's.
LOGS = ("worker.log", "server.log", "scheduler.log", "metrics.json")
# Enough of a log's end to distinguish it from all others: its last lines with their times.
_END_BYTES = 4096


@dataclass(frozen=True)
class JobStart:
    """The start of a job.

    Attributes:
        began: local time at which the servers were started.
        earlier: the end of each log that existed then.
    """

    began: datetime
    earlier: frozenset[str]

    def is_after(self, log: Path) -> bool:
        """Return whether the job began after a role's log ended, wherever its folder was moved."""
        return _end_of(log) in self.earlier


def note_start(folder: Path) -> None:
    """Record that a job starts in `folder` now, and clear the states of ended roles."""
    state = folder / FOLDER
    with update_record(folder) as record:
        record.processes = record.living()
        running = {process.label for process in record.processes}
        for path in [*state.glob("specs/*.json"), *state.glob("status/*.json")]:
            if path.name.split(".")[0] not in running:
                path.unlink(missing_ok=True)
        ends = {_end_of(log) for name in LOGS for log in folder.glob(f"*/{name}")}
        began = datetime.now().strftime(FORMAT)
        write_json(
            state / FILE, {"started": began, "earlier_logs": sorted(ends - {""})}, durable=True
        )


def job_start(folder: Path) -> JobStart | None:
    """Return the start of the job of `folder`.

    None if no servers were started from here, as on a silo's machine: only starting the servers
    shows that a job is new.
    """
    written = read_status(folder / FOLDER / FILE)
    began, ends = read_time(written.get("started")), written.get("earlier_logs", [])
    if began is None or not isinstance(ends, list):
        return None
    return JobStart(began, frozenset(end for end in ends if isinstance(end, str)))


def read_time(text: Any) -> datetime | None:
    """Parse a time in FORMAT; return None for anything else."""
    try:
        return datetime.strptime(text, FORMAT)
    except (TypeError, ValueError):
        return None


def _end_of(log: Path) -> str:
    """Return size and digest of the end of a log's newest file; "" if nothing is written yet."""
    for part in reversed(log_parts(log)):
        try:
            size = part.stat().st_size
            with part.open("rb") as file:
                file.seek(max(0, size - _END_BYTES))
                end = file.read(_END_BYTES)
        except OSError:  # a log that rotates at this moment is being written
            continue
        if end:
            return f"{size} {hashlib.blake2b(end, digest_size=16).hexdigest()}"
    return ""
