"""A role's progress as a small JSON file that launchers and displays read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

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
        self.fields: dict[str, Any] = {}

    def update(self, **fields: Any) -> None:
        """Set `fields` and write all of them, with the time."""
        self.fields.update(fields, time=time.time())
        if self._path is not None:
            write_json(self._path, self.fields)


def read_status(path: Path) -> dict[str, Any]:
    """The fields of a status file, or {} before it is there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
