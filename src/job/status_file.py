"""A role's progress as a small JSON file that launchers and displays read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from src.files import Lossy
from src.job.job_record import FOLDER, write_json


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
    """The fields of a status file, or {} before it is there, or where a power cut emptied it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
