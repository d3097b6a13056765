"""What a worker keeps of its evaluations: log lines, metrics.jsonl, the best global model."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Callable

from src.evaluation.metrics import figures_line
from src.files import append_line, parsed_json
from src.job.job_record import StatusFile, write_json
from src.job.log_files import say, stamp
from src.printing import print


class Journal:
    """Evaluates the global model after every n-th iteration, and keeps what came of it.

    An evaluation that fails costs a line in the log and nothing else.

    Args:
        label: the worker, in log lines.
        evaluate: gives the figures, per_class, images and seconds of the weights of now.
        interval: iterations from one evaluation to the next.
        metrics: gets a JSON line for each evaluation.
        best: JSON file of the best one so far; one that is there already counts.
        save_best: keeps the weights of now as the best.
        status: gets the phase, ap and ap50.
    """

    def __init__(
        self,
        label: str,
        evaluate: Callable[[], dict[str, Any]],
        interval: int,
        metrics: Path,
        best: Path,
        save_best: Callable[[], None],
        status: StatusFile,
    ):
        self._label = label
        self._evaluate = evaluate
        self._interval = interval
        self._metrics = metrics
        self._best = best
        self._save_best = save_best
        self._status = status
        self._best_ap = best_ap(best)

    def after(self, iteration: int) -> None:
        """The global model of `iteration` is in the network."""
        if iteration % self._interval:
            return
        self._status.update(phase="evaluate")
        try:
            found = self._evaluate()
            record = {"iteration": iteration, **found, "time": time.time()}
            print(f"{stamp(self._label)}{figures_line(record)}", flush=True)
            append_line(self._metrics, json.dumps(record))
            self._keep_best(record)
        except Exception as error:  # whatever it is, the training goes on without it
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            say(
                self._label,
                f"WARNING: evaluation of iteration {iteration} failed: {reason}; training goes on",
            )
            return
        self._status.update(ap=record["AP"], ap50=record["AP50"], evaluated=iteration)

    def _keep_best(self, record: dict[str, Any]) -> None:
        if record["AP"] is None or record["AP"] <= self._best_ap:
            return
        self._save_best()
        write_json(self._best, record)
        self._best_ap = record["AP"]


def best_ap(best: Path) -> float:
    """The AP that an earlier process of this worker has reached; -1 where none has."""
    try:
        return float(parsed_json(best.read_text(encoding="utf-8"))["AP"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1.0
