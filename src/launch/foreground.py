"""A launcher that stays until what it started has ended, for containers and service managers."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

from src.job.job_record import read_record
from src.launch.processes import Started, stop

POLL_S = 0.5


def launch_and_stay(stay: bool, launch: Callable[[], list[Started]]) -> int:
    """Call `launch`; with `stay`, then print the logs until all that it started has ended.

    SIGTERM and Ctrl-C stop what was started.

    Returns:
        The exit code: the highest of the roles', or 128 and the signal's number.
    """
    if not stay:
        launch()
        return 0
    # As the first process of a container it would get no signal that it does not ask for.
    before = signal.signal(signal.SIGTERM, _on_signal)
    try:
        # While it starts them, the launcher itself stops them at any exception.
        return _follow(launch())
    finally:
        signal.signal(signal.SIGTERM, before)


def _on_signal(number: int, _frame: Any) -> None:
    raise SystemExit(128 + number)


def _follow(started: Sequence[Started]) -> int:
    logs = [LogTail(role.log, role.role.label if len(started) > 1 else "") for role in started]
    try:
        ended = False
        while not ended:
            ended = all(role.supervisor.poll() is not None for role in started)
            for log in logs:
                log.show()
            if not ended:
                time.sleep(POLL_S)
    except BaseException:
        _stop(started)
        for log in logs:
            log.show()
        raise
    return max(role.supervisor.returncode for role in started)


def _stop(started: Sequence[Started]) -> None:
    record = read_record(Path.cwd())
    labels = {role.role.label for role in started}
    mine = [p for p in record.running() if p.label in labels] if record else []
    for line in stop(mine):
        print(f"WARNING: {line}", flush=True)


class LogTail:
    """Prints a log's new lines, also when the file is put aside and begun anew.

    Args:
        path: the log.
        label: stands before each line; "" for nothing.
    """

    def __init__(self, path: Path, label: str = ""):
        self._path = path
        self._before = f"{label} | " if label else ""
        self._file = path.open(encoding="utf-8", errors="replace")
        self._begun = ""

    def show(self) -> None:
        """Print the lines that are complete by now."""
        self._print()
        now = self._path.stat() if self._path.exists() else None
        if now and not os.path.samestat(now, os.fstat(self._file.fileno())):
            self._file.close()
            self._file = self._path.open(encoding="utf-8", errors="replace")
            self._print()

    def _print(self) -> None:
        text = self._begun + self._file.read()
        *lines, self._begun = text.split("\n")
        for line in lines:
            sys.stdout.write(f"{self._before}{line}\n")
        sys.stdout.flush()
