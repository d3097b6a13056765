"""A worker's callbacks around the manager: what follows an iteration or a join, epochs' times."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Callable

from mindspore import Tensor, nn
from mindspore import dtype as mstype
from mindspore.train.callback import Callback, RunContext

from src.evaluation.journal import Journal
from src.federated.checkpoint_keeper import CheckpointKeeper
from src.federated.manager import SiloManager
from src.federated.resume import StateKeeper


class KeepAfterRound(Callback):
    """Saves, and evaluates, the global model whenever the manager has taken one, and the state.

    An iteration that failed has no model of its own, so its number is left out of the checkpoints.
    It stands behind the manager in the list of callbacks.
    """

    def __init__(
        self,
        manager: SiloManager,
        keeper: CheckpointKeeper,
        journal: Journal | None,
        state: StateKeeper | None,
    ):
        super().__init__()
        self._manager = manager
        self._keeper = keeper
        self._journal = journal
        self._state = state
        self._saved = 0

    def on_train_step_end(self, run_context: RunContext) -> None:
        """After each step."""
        for record in self._manager.rounds[self._saved :]:
            # A late silo has a later model by now than that of the iteration it took part in.
            number = self._manager.iteration - 1
            has_model = record.result != "lost" or number != record.iteration
            if has_model:
                self._keeper.save(number)
            self._saved += 1
            if self._state is not None:
                self._state.save()
            if self._journal is None or not has_model:
                continue
            if self._manager.finished:
                # Servers wait with their end for the connections of silos.
                self._manager.close()
            self._journal.after(number)


class FollowIterations(Callback):
    """Moves the schedule on by the iterations that the silo sits out.

    So its learning rate is that of the servers' iteration, as that of a silo that starts late is.
    Comes after the manager, which joins an iteration at its first step.

    Args:
        manager: the silo's.
        optimizer: of the training step; its momentum stays.
        counters: callbacks with an attribute `steps_done` are moved on too.
        unit: steps that one of `manager.frequency` stands for.
    """

    def __init__(
        self, manager: SiloManager, optimizer: nn.Cell, counters: Sequence[Any], unit: int
    ):
        super().__init__()
        self._manager = manager
        self._optimizer = optimizer
        self._counters = [counter for counter in counters if hasattr(counter, "steps_done")]
        self._unit = unit
        self._iteration = manager.iteration

    def on_train_step_begin(self, run_context: RunContext) -> None:
        """Before each step."""
        missed = self._manager.iteration - self._iteration - 1
        self._iteration = self._manager.iteration
        if missed <= 0 or self._manager.finished:
            return
        steps = missed * self._manager.frequency * self._unit
        done = int(self._optimizer.global_step.asnumpy()[0]) + steps
        self._optimizer.global_step.set_data(Tensor([done], mstype.int32))
        for counter in self._counters:
            counter.steps_done += steps


class EpochTimes(Callback):
    """Says after each epoch how many steps it had and how long they took, without the rounds.

    It stands behind all other callbacks and its `before` in front of them: what passes between the
    two is the others' (synchronising, saving, evaluating), the rest is training and its data.

    Args:
        log: writes a line.
        epochs_done: what earlier runs of this silo have trained.
    """

    def __init__(self, log: Callable[[str], None], epochs_done: int = 0):
        super().__init__()
        self.before = _Reached()
        self._log = log
        self._epoch = epochs_done
        self._steps_before = 0
        self._begin = self._step_begin = 0.0
        self._others = 0.0  # seconds of this epoch
        self._first = 0.0  # seconds of this process's first step

    def on_train_epoch_begin(self, run_context: RunContext) -> None:
        """Before the epoch's first batch is asked for."""
        self._begin, self._others = time.monotonic(), 0.0

    def on_train_step_begin(self, run_context: RunContext) -> None:
        """After the other callbacks, which may have joined an iteration."""
        self._step_begin = time.monotonic()
        self._others += self._step_begin - self.before.time

    def on_train_step_end(self, run_context: RunContext) -> None:
        """After the other callbacks, which may have waited for other silos."""
        self._others += time.monotonic() - self.before.time
        if not self._first:
            self._first = self.before.time - self._step_begin

    def on_train_epoch_end(self, run_context: RunContext) -> None:
        """Say it, unless --resume has left the whole epoch out."""
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


class _Reached(Callback):
    """Keeps when the callbacks were reached last."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0

    def on_train_step_begin(self, run_context: RunContext) -> None:
        """Before the other callbacks."""
        self.time = time.monotonic()

    on_train_step_end = on_train_step_begin
