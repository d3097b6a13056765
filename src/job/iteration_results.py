"""The results of a job's iterations: aggregated by the servers, or failed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from src.files import append_line, numbered, parsed_json
from src.job.job_start import JobStart

# Below this share of its iterations a job has failed, for the exit codes of workers and servers.
LEAST_SHARE = 0.5
# Of the engine; each server of a folder writes those iterations into it that it has ended.
METRICS = Path("server_0") / "metrics.json"
# Next to it: the iterations that the engine aggregated and whose model the server did not keep.
REFUSED_MODELS = "refused_models.jsonl"


def summary_of(aggregated: int, failed: int, unknown: int = 0) -> str:
    """Return how many iterations succeeded, as in: 28 of 30 iterations aggregated.

    Args:
        unknown: number of iterations that are over too, and whose result is unknown.
    """
    words = f"{aggregated} of {aggregated + failed} iterations aggregated"
    words += f", {failed} failed" if failed else ""
    return f"{words} (of {unknown} more nothing is known)" if unknown > 0 else words


def has_failed(aggregated: int, failed: int) -> bool:
    """Return whether so few iterations were aggregated that the job counts as failed."""
    return aggregated < LEAST_SHARE * (aggregated + failed)


def counts_of(results: Mapping[int, bool]) -> tuple[int, int]:
    """Return how many iterations were aggregated, and how many failed."""
    aggregated = sum(results.values())
    return aggregated, len(results) - aggregated


def results_in(metrics: Path, started: JobStart | None = None) -> dict[int, bool]:
    """Return whether each iteration was aggregated, according to the engine's files.

    Args:
        metrics: the engine's file; server_0.1, server_0.2, ... hold those of earlier servers.
        started: the start of the job; files from before it belong to another job.
    """
    results: dict[int, bool] = {}
    earlier = [folder / metrics.name for folder in numbered(metrics.parent)]
    for path in [*earlier, metrics]:
        if not path.is_file() or (started and started.is_after(path)):
            continue
        refused = _refused(path.with_name(REFUSED_MODELS))
        for number, began, aggregated in _entries(path):
            # Servers that have gone back to an iteration repeat the later ones.
            results = {n: result for n, result in results.items() if n < number}
            results[number] = aggregated and not any(when >= began for when in refused[number])
    return results


def note_refused(metrics: Path, iteration: int) -> None:
    """Note that a server did not keep the model of `iteration`, which the engine counts a success.

    Args:
        metrics: the engine's file.

    Raises:
        OSError: it cannot be written.
    """
    # The engine's own form of a time, so that the two compare as text.
    now = datetime.now().isoformat(sep=" ", timespec="milliseconds")
    line = json.dumps({"iteration": iteration, "time": now})
    append_line(metrics.with_name(REFUSED_MODELS), line)


def _refused(path: Path) -> Mapping[int, list[str]]:
    """Return iteration -> times at which its model was not kept; {} without a file."""
    found: dict[int, list[str]] = defaultdict(list)
    for entry in _lines(path) if path.is_file() else []:
        if isinstance(entry.get("iteration"), int) and isinstance(entry.get("time"), str):
            found[entry["iteration"]].append(entry["time"])
    return found


def results_of_rounds(rounds: Iterable[Mapping[str, Any]]) -> dict[int, bool]:
    """Return whether each iteration was aggregated, from the lines of the silos' rounds.jsonl.

    An iteration that was aggregated without a silo counts as aggregated.
    """
    results: dict[int, bool] = {}
    for line in rounds:
        number = int(line["iteration"])
        results[number] = results.get(number, False) or line.get("result") != "lost"
    return results


def _entries(path: Path) -> Iterable[tuple[int, str, bool]]:
    """Yield number, begin and success of each iteration that the engine has ended."""
    for entry in _lines(path):
        number = entry.get("currentIteration")
        if isinstance(number, int) and "iterationResult" in entry:
            yield number, str(entry.get("startTime", "")), entry["iterationResult"] == "success"


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    """Yield the object of each complete line; a kill may leave a partial last line."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = parsed_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry
