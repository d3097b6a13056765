"""When the job of a folder began: what tells its log folders from those of the job before it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from src.job.job_record import FOLDER, update_record, write_json
from src.job.status_file import read_status

FILE = "job_start.json"
# As in the logs, whose times it is compared with: local, to the second.
FORMAT = "%Y-%m-%d %H:%M:%S"


def note_start(folder: Path) -> None:
    """A new job begins in `folder` now; what `.federation` says of ended roles is forgotten."""
    state = folder / FOLDER
    with update_record(folder) as record:
        record.processes = record.living()
        running = {process.label for process in record.processes}
        for path in [*state.glob("specs/*.json"), *state.glob("status/*.json")]:
            if path.name.split(".")[0] not in running:
                path.unlink(missing_ok=True)
        write_json(state / FILE, {"started": datetime.now().strftime(FORMAT)}, durable=True)


def job_start(folder: Path) -> datetime | None:
    """When the job of `folder` began, in local time.

    None where no servers were started from here, as on a silo's machine: they alone know whether a
    job is new.
    """
    written = read_status(folder / FOLDER / FILE)
    return read_time(written.get("started")) if isinstance(written, dict) else None


def read_time(text: Any) -> datetime | None:
    """A time of FORMAT; None of anything else."""
    try:
        return datetime.strptime(text, FORMAT)
    except (TypeError, ValueError):
        return None
