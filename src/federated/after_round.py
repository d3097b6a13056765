"""What a worker does with each global model, after the manager has loaded it."""

from __future__ import annotations

from mindspore.train.callback import Callback, RunContext

from src.evaluation.journal import Journal
from src.federated.checkpoint_keeper import CheckpointKeeper
from src.federated.manager import SiloManager
from src.federated.resume import StateKeeper


class KeepAfterRound(Callback):
    """Saves, and evaluates, the global model whenever the manager has taken one, and the state.

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
            self._keeper.save(record.iteration)
            self._saved += 1
            if self._state is not None:
                self._state.save()
            if self._journal is None:
                continue
            if self._manager.finished:
                # Servers wait with their end for the connections of silos.
                self._manager.close()
            self._journal.after(record.iteration)
