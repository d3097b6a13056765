"""A role's progress and its end as small JSON files that launchers and displays read."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from src.files import Lossy, parsed_json
from src.job.job_record import FOLDER, write_json
from src.printing import print

# The phase of a worker that has nothing left to do, and the first word of its last line.
DONE = "finished"
# The first words of the reason where the user stopped a role.
STOPPED_BY = "stopped by"
EXIT_SUFFIX = ".exit.json"


def status_path(folder: Path, label: str) -> Path:
    """Where the role `label` (worker_0, server_1) of the job of `folder` keeps its status."""
    return folder / FOLDER / "status" / f"{label}.json"


class StatusFile:
    """Fields that a role keeps up to date.

    Args:
        path: the file; its folder is made. None keeps the fields in memory only.
    """

    def __init__(self, path: Path | None):
        self._path = path
        self._file = Lossy("the status file", _say)
        self.fields: dict[str, Any] = {}

    def update(self, **fields: Any) -> None:
        """Set `fields` and write all of them, with the time; a full disk costs a log line."""
        self.fields.update(fields, time=time.time())
        path = self._path
        if path is not None:
            self._file.do(lambda: write_json(path, self.fields))


def _say(text: str) -> None:
    print(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {text}", flush=True)


def read_status(path: Path) -> dict[str, Any]:
    """The fields of such a file, or {} before it is there, or where a power cut emptied it."""
    try:
        fields = parsed_json(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def is_done(path: Path) -> bool:
    """Whether the worker of a status file has said that it is finished."""
    return read_status(path).get("phase") == DONE


def exit_path(folder: Path, label: str) -> Path:
    """Where the supervisor of the role `label` leaves {"code", "reason"} at the role's end."""
    return status_path(folder, label).with_name(f"{label}{EXIT_SUFFIX}")


def exit_states(folder: Path) -> dict[str, dict[str, Any]]:
    """How each role ended, by label: `code` and `reason`; a role that runs has no entry.

    A worker that was finished when it was killed together with its supervisor has ended well.
    """
    states: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / FOLDER / "status").glob("*.json")):
        if path.name.endswith(EXIT_SUFFIX):
            states[path.name[: -len(EXIT_SUFFIX)]] = read_status(path)
        elif is_done(path):
            states.setdefault(path.stem, {"code": 0, "reason": DONE})
    return states
