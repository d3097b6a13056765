"""A worker's part in --resume: saves its state after each round, restores it at the start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import numpy as np
from mindspore import Tensor, nn

from src.errors import UserError
from src.federated.manager import SiloManager
from src.federated.ranks import Message, Ranks
from src.federated.resume_state import (
    ResumeState,
    load_state,
    save_state,
    state_file,
    terms_of_state,
)
from src.files import reason
from src.job.job_config import JobConfig

MOMENTUM, FRESH = "momentum.", "momentum_is_fresh"
# Servers that lost their newest file are one iteration behind; iteration 1 with a later state means
# a new job.
FIRST_ITERATIONS = 2


def resumed_state(
    job: JobConfig, config: Any, shard: Path, ranks: Ranks | None, log: Callable[[str], None]
) -> ResumeState | None:
    """Return the state that --resume continues from; None without the flag or a readable state.

    In a silo of several ranks, rank 0 reads it for all of them.

    Raises:
        UserError: the state belongs to another job, shard or configuration.
    """
    if not config.resume:
        return None
    if ranks is not None and ranks.rank:
        told = ranks.hear()
        return ResumeState(**told.fields, arrays=told.arrays) if told.fields else None
    path = state_file(config.output_dir, shard)
    state = load_state(path, terms_of_state(job, config, shard), log)
    if ranks is not None:
        fields = {k: getattr(state, k) for k in ("iteration", "steps", "numbers")} if state else {}
        ranks.tell(Message("resume", fields, state.arrays if state else {}))
    return state


def require_same_job(state: ResumeState | None, iteration: int) -> None:
    """Raise a UserError if the servers have restarted the job since `state`."""
    if state is not None and iteration == 1 and state.iteration > FIRST_ITERATIONS:
        raise UserError(
            f"--resume: this silo's state is of iteration {state.iteration}, and the servers begin "
            "with iteration 1, a new job; start the silo without --resume, or the servers with it"
        )


class StateKeeper:
    """Writes a worker's state after each synchronisation; a failed write is only logged.

    Args:
        path: see `state_file`.
        terms: see `terms_of_state`.
        manager: the silo's manager.
        optimizer: the training step's optimiser.
        log: called with a log line.
    """

    def __init__(
        self,
        path: Path,
        terms: Mapping[str, str],
        manager: SiloManager,
        optimizer: nn.SGD,
        log: Callable[[str], None],
    ):
        self._path = path
        self._terms = terms
        self._manager = manager
        self._optimizer = optimizer
        self._log = log

    def save(self) -> None:
        """Write the current state, between two iterations."""
        arrays, numbers = self._manager.state()
        arrays.update(momentum_of(self._optimizer))
        steps = int(self._optimizer.global_step.asnumpy()[0])
        state = ResumeState(self._manager.iteration, steps, numbers, arrays)
        try:
            save_state(self._path, state, self._terms)
        except OSError as error:
            self._log(
                f"WARNING: {self._path} was not written: {reason(error)}; --resume will miss it"
            )


def momentum_of(optimizer: nn.SGD) -> dict[str, np.ndarray]:
    """Return each weight's momentum as a 1-D array, and whether it is still to be initialised.

    The arrays are the optimiser's own memory, valid until its next step.
    """
    arrays = {MOMENTUM + p.name: p.asnumpy().reshape(-1) for p in optimizer.accum}
    # MindSpore keeps one flag for each value, though a step clears all of a weight's at once.
    marks = [p.asnumpy().reshape(-1)[0] for p in optimizer.stat]
    return {**arrays, FRESH: np.array(marks, np.float32)}


def set_momentum(optimizer: nn.SGD, arrays: Mapping[str, np.ndarray]) -> None:
    """Restore what `momentum_of` returned.

    Raises:
        UserError: the momentum belongs to other weights.
    """
    expected = {MOMENTUM + p.name: p.size for p in optimizer.accum}
    held = {name: array.size for name, array in arrays.items() if name.startswith(MOMENTUM)}
    if held != expected:
        raise UserError(
            f"--resume: the state's momentum is of {len(held)} weights that are not the "
            f"{len(expected)} of this detector; start the silo without --resume"
        )
    for param in optimizer.accum:
        param.set_data(Tensor(arrays[MOMENTUM + param.name].reshape(param.shape)))
    for param, mark in zip(optimizer.stat, arrays[FRESH]):
        param.set_data(Tensor(np.full(param.shape, mark, np.float32)))
