"""The file in which a worker enters each private upload before it leaves the silo.

A worker that is started again finds the entries of its earlier processes in the folders that were
renamed for it (worker_0.1, worker_0.2, ...), and goes on counting from them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.federated.privacy_settings import PrivacySettings
from src.federated.rounds import SyncError
from src.files import append_line, parsed_json, reason

LEDGER = "privacy.jsonl"


class PrivacyLedger:
    """The private uploads of one data set by one worker.

    Args:
        folder: of the worker's log; the ledger lies in it.
        data: what the uploads tell of: entries of other data sets are not counted.

    Attributes:
        multipliers: the noise multiplier of each upload so far.
    """

    def __init__(self, folder: Path, data: Path):
        self._folder = folder.absolute()
        self._data = str(data.absolute())
        self.multipliers: list[float] = []

    def begin(self) -> list[str]:
        """Read what earlier processes entered.

        Returns:
            Lines that say what was found.

        Raises:
            UserError: a ledger that cannot be read.
        """
        said = []
        for folder in self._folders():
            if (folder / LEDGER).is_file():
                self.multipliers += self._counted(folder / LEDGER)
            elif (folder / "rounds.jsonl").is_file() and folder != self._folder:
                said.append(
                    f"WARNING: {folder} is of an earlier run without dp_clip_norm: what it sent "
                    "had no noise and is not counted"
                )
        if self.multipliers:
            said.append(f"privacy: {len(self.multipliers)} earlier upload(s) of this data count")
        else:
            said.append(f"privacy: no earlier upload of {self._data} is known; counting from 0")
        return said

    def add(self, iteration: int, settings: PrivacySettings, epsilon: float) -> None:
        """Enter an upload, on the disk before this returns.

        Raises:
            SyncError: it could not be written.
        """
        entry = {
            "iteration": iteration,
            "clip_norm": settings.clip_norm,
            "noise_multiplier": settings.noise_multiplier,
            "delta": settings.delta,
            "epsilon": epsilon if math.isfinite(epsilon) else None,
            "data": self._data,
        }
        path = self._folder / LEDGER
        try:
            append_line(path, json.dumps(entry), durable=True, private=True)
        except OSError as error:
            raise SyncError(
                f"{path} could not be written, nothing was sent: {reason(error)}"
            ) from error
        self.multipliers.append(settings.noise_multiplier)

    def _folders(self) -> list[Path]:
        """This worker's folder and the earlier ones beside it."""
        earlier = [
            path
            for path in self._folder.parent.glob(f"{self._folder.name}.*")
            if path.suffix[1:].isdigit()
        ]
        return [*sorted(earlier), self._folder]

    def _counted(self, path: Path) -> list[float]:
        """Noise multipliers of the entries of this ledger's data.

        What stands behind the last line's end is of an upload that never left.
        """
        *lines, _ = path.read_text(encoding="utf-8").split("\n")
        entries = [self._entry(path, number, line) for number, line in enumerate(lines, 1)]
        return [entry["noise_multiplier"] for entry in entries if entry["data"] == self._data]

    @staticmethod
    def _entry(path: Path, number: int, line: str) -> dict[str, Any]:
        try:
            entry = parsed_json(line)
            if entry["noise_multiplier"] >= 0 and isinstance(entry["data"], str):
                return entry
        except (ValueError, KeyError, TypeError):
            pass
        raise UserError(
            f"{path}, line {number}: no entry of a private upload ({line[:40]!r}); without it "
            "epsilon would be too small: restore the file, or move the folder away to count anew"
        )
