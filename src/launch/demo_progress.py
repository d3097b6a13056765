"""What the demo shows while its silos train: a bar for each, or a line now and then in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from src.errors import StartError
from src.job.job_record import JobRecord, read_record
from src.job.status_file import read_status, status_path
from src.printing import print

STALL_TIMEOUT_S = 300.0


def follow(folder: Path, silos: int) -> None:
    """Show step and loss of each silo until the last step of the last iteration.

    Args:
        folder: that the job was started from.

    Raises:
        StartError: nothing has moved for STALL_TIMEOUT_S.
    """
    show = bars if sys.stderr.isatty() else lines
    labels = [f"worker_{number}" for number in range(silos)]
    show(labels, _statuses(folder, labels))


def _statuses(folder: Path, labels: list[str]) -> Iterator[list[dict]]:
    """The workers' status files, twice a second, until all are done or one has ended."""
    last: list[tuple] = []
    changed = time.monotonic()
    while True:
        statuses = [read_status(status_path(folder, label)) for label in labels]
        yield statuses
        if all(s.get("phase") in ("finished", "failed") for s in statuses):
            return
        if not (read_record(folder) or JobRecord()).running("worker"):
            return
        seen = [(s.get("phase"), s.get("step")) for s in statuses]
        if seen != last:
            last, changed = seen, time.monotonic()
        if time.monotonic() - changed > STALL_TIMEOUT_S:
            raise StartError(f"no progress for {STALL_TIMEOUT_S:.0f} s: {seen}", 1)
        time.sleep(0.5)


def bars(labels: list[str], statuses: Iterator[list[dict]]) -> None:
    """A progress bar for each silo, on a terminal."""
    shown = [tqdm(desc=label, unit="step", position=i) for i, label in enumerate(labels)]
    try:
        for current in statuses:
            for bar, status in zip(shown, current):
                bar.total = status.get("steps")
                bar.n = status.get("step", 0)
                bar.set_postfix_str(describe(status))
    finally:
        for bar in shown:
            bar.close()


def lines(labels: list[str], statuses: Iterator[list[dict]]) -> None:
    """A line for each silo every ten seconds, in a file."""
    next_line = 0.0
    for current in statuses:
        if time.monotonic() < next_line:
            continue
        next_line = time.monotonic() + 10
        for label, status in zip(labels, current):
            step, steps = status.get("step", 0), status.get("steps", 0)
            print(f"{label}: step {step} of {steps}, {describe(status)}", flush=True)


def describe(status: dict) -> str:
    """Iteration, loss and phase of a worker's status."""
    loss = f"loss {status['loss']:.3f}, " if "loss" in status else ""
    iteration = min(status.get("iteration", 0), status.get("iterations", 0))
    return f"iteration {iteration} of {status.get('iterations', 0)}, {loss}{status.get('phase')}"
