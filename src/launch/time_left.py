"""How long a job still takes, at the pace of its latest iterations."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from src.reporting.run_folder import read_json_lines

RECENT = 5  # iterations whose durations stand for those to come


def time_left(
    folder: Path, workers: Iterable[str], number: int | None, last: int | None
) -> float | None:
    """Seconds to the end of the last iteration; None where none has been done, or none is known.

    Args:
        folder: of the job; its servers' figures are taken, else its workers'.
        workers: their labels.
        number, last: the current iteration and the last one.
    """
    if not number or not last:
        return None
    durations, ended = _pace(folder, workers)
    if not durations:
        return None
    recent = sorted(durations[-RECENT:])
    each = recent[len(recent) // 2]
    return (last - number) * each + max(0.0, each - max(0.0, time.time() - ended))


def _pace(folder: Path, workers: Iterable[str]) -> tuple[list[float], float]:
    """Seconds of each iteration that succeeded, oldest first, and when the latest one ended."""
    notes: list[str] = []
    metrics = folder / "server_0" / "metrics.json"
    lines = read_json_lines(metrics, ("currentIteration", "iterationExecutionTime"), notes)
    good = [line for line in lines if line.get("iterationResult") == "success"]
    if good:
        return [line["iterationExecutionTime"] / 1000 for line in good], metrics.stat().st_mtime
    for label in workers:
        path = folder / label / "rounds.jsonl"
        if rounds := read_json_lines(path, ("iteration", "round_s"), notes):
            return [line["round_s"] for line in rounds], path.stat().st_mtime
    return [], 0.0
