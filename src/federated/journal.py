"""Records a worker's evaluations: log lines, metrics.jsonl, the best global model."""

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
    """Evaluates the global model after every n-th iteration, and records the result.

    A failed evaluation is only logged.

    Args:
        label: the worker, in log lines.
        evaluate: returns the metrics, per_class, images and seconds for the current weights.
        interval: number of iterations between evaluations.
        metrics: file that gets a JSON line for each evaluation.
        best: JSON file of the best evaluation so far; an existing one counts.
        save_best: saves the current weights as the best.
        status: file that gets the phase, ap and ap50.
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
        """Evaluate the network, which holds the global model of `iteration`."""
        if iteration % self._interval:
            return
        self._status.update(phase="evaluate")
        try:
            found = self._evaluate()
            record = {"iteration": iteration, **found, "time": time.time()}
            print(f"{stamp(self._label)}{figures_line(record)}", flush=True)
            append_line(self._metrics, json.dumps(record))
            self._keep_best(record)
        except Exception as error:  # of any kind: training continues
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
    """Return the best AP of earlier processes of this worker; -1 where there is none."""
    try:
        return float(parsed_json(best.read_text(encoding="utf-8"))["AP"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1.0
