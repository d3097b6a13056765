"""Measure how long a worker's steps and synchronisations take, for its log and its status file."""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import Callable

from mindspore.train.callback import Callback, RunContext

from src.job.job_record import StatusFile

RECENT_STEPS = 20  # whose median is the time of a step
RECENT_ROUNDS = 5  # iterations whose median is the time of a synchronisation


class StepTimes(Callback):
    """Logs each epoch's seconds, and keeps the pace in the status file.

    Place it after all other callbacks and its `before` in front of them: the time between the two
    belongs to the others (synchronising, waiting for silos, saving, evaluating), the rest is
    training and data loading. The status file gets `step_s`, the median of the recent steps without
    the first one, which compiles; `sync_s`, the median of what the recent iterations took in the
    other callbacks; and `steps_left` to the end of the job.

    Args:
        log: called with a log line.
        status: the worker's status file.
        place: returns the number of iterations that this process has ended, and of the steps to the
            end of the job.
        epochs_done: number of epochs that earlier runs of this silo have trained.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        status: StatusFile,
        place: Callable[[], tuple[int, int]],
        epochs_done: int = 0,
    ):
        super().__init__()
        self.before = _Before(self._trained)
        self._log, self._status, self._place = log, status, place
        self._epoch = epochs_done
        self._steps_before = 0  # those of earlier epochs
        self._steps_seen = 0
        self._begin = self._step_begin = 0.0
        self._others = 0.0  # seconds of this epoch in other callbacks
        self._first = 0.0  # seconds of this process's first step
        self._ended = 0.0  # when the callbacks of the step before had ended
        self._joining = 0.0  # seconds of the other callbacks before the current step
        self._rounds = 0
        self._sync = 0.0  # seconds of this iteration in other callbacks
        self._step_s: deque[float] = deque(maxlen=RECENT_STEPS)
        self._sync_s: deque[float] = deque(maxlen=RECENT_ROUNDS)

    def on_train_epoch_begin(self, run_context: RunContext) -> None:
        """Start the time before the epoch's first batch is requested."""
        self._begin = self._ended = time.monotonic()
        self._others = 0.0

    def on_train_step_begin(self, run_context: RunContext) -> None:
        """Exclude the time of the other callbacks, which may have joined an iteration."""
        self._step_begin = time.monotonic()
        self._joining = self._step_begin - self.before.time
        self._others += self._joining
        self._sync += self._joining

    def _trained(self, run_context: RunContext) -> None:
        """Write the pace after a step, before the other callbacks synchronise or evaluate."""
        reached = self.before.time
        steps = run_context.original_args().cur_step_num - self._steps_seen
        self._steps_seen += steps
        if not self._first:
            self._first = reached - self._step_begin
        else:
            self._step_s.append((reached - self._ended - self._joining) / steps)
        pace: dict[str, float] = {"steps_left": self._place()[1]}
        if self._step_s:
            pace["step_s"] = statistics.median(self._step_s)
        self._status.update(**pace)

    def on_train_step_end(self, run_context: RunContext) -> None:
        """Exclude the time of the other callbacks, which may have waited for other silos."""
        self._ended = time.monotonic()
        self._others += self._ended - self.before.time
        self._sync += self._ended - self.before.time
        rounds, _ = self._place()
        if rounds > self._rounds:
            self._sync_s.append(self._sync)
            self._rounds, self._sync = rounds, 0.0
            self._status.update(sync_s=statistics.median_low(self._sync_s))

    def on_train_epoch_end(self, run_context: RunContext) -> None:
        """Log the epoch, unless --resume has skipped all of it."""
        steps = run_context.original_args().cur_step_num - self._steps_before
        self._epoch += 1
        self._steps_before += steps
        if not steps:
            return
        seconds = time.monotonic() - self._begin - self._others
        line = f"epoch {self._epoch}: {steps} step{'s' if steps > 1 else ''} in {seconds:.1f} s"
        if steps < self._steps_before:
            line += f", {seconds / steps:.3g} s per step"
        elif steps > 1:
            each = (seconds - self._first) / (steps - 1)
            line += (
                f", {each:.3g} s per step after the first ({self._first:.1f} s with compilation)"
            )
        else:
            line += " with compilation"
        self._log(line)


class _Before(Callback):
    """Records when the callbacks were last reached.

    Args:
        trained: called at the end of a step.
    """

    def __init__(self, trained: Callable[[RunContext], None]) -> None:
        super().__init__()
        self.time = 0.0
        self._trained = trained

    def on_train_step_begin(self, run_context: RunContext) -> None:
        """Record the time before the other callbacks."""
        self.time = time.monotonic()

    def on_train_step_end(self, run_context: RunContext) -> None:
        """Record the time before the other callbacks, and note the step."""
        self.time = time.monotonic()
        self._trained(run_context)
