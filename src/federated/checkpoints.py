"""A worker's checkpoints: the global model of each iteration, and the best one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.federated.fingerprint import FEATURE_NAME
from src.federated.rounds import SyncError
from src.files import reason, whole_file
from src.job.disk_room import kept_files, require_disk, worker_files
from src.job.log_files import say


def save_network(
    network: nn.Cell,
    path: Path,
    mark: np.ndarray | None = None,
    more: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a checkpoint of all parameters, the fingerprint of their job, and `more` entries."""
    extra = {} if mark is None else {FEATURE_NAME: Tensor(mark)}
    extra.update({name: Tensor(array) for name, array in (more or {}).items()})
    ms.save_checkpoint(network, str(path), append_dict=extra or None)


class CheckpointKeeper:
    """Writes the global model of each iteration into the worker's ckpt folder.

    Args:
        label: the worker, for messages.
        network: all its parameters are saved, frozen ones included.
        folder: the worker's ckpt/mindrecord_0.
        user: the name in file names, such as mindrecord_0.
        config: the keys save_checkpoint, checkpoints_kept and run_eval are read.
        mark: the fingerprint of the network's training settings; None writes none.
    """

    def __init__(
        self,
        label: str,
        network: nn.Cell,
        folder: Path,
        user: str,
        config: Any,
        mark: np.ndarray | None = None,
    ):
        self._label = label
        self._network = network
        self._mark = mark
        self._folder = folder
        self._user = user
        self._config = config
        self._kept = config.checkpoints_kept
        self._on = config.save_checkpoint
        self._partial = folder / ".partial.ckpt"
        # Includes an earlier process's checkpoints where this process continues in its folder.
        self._written = kept_files(folder, user)

    @property
    def best(self) -> Path:
        """Return the path of the best model."""
        return self._folder / "best.ckpt"

    def require_room(self, iterations: int, workers: int) -> None:
        """Raise a UserError when the disk has no room for the checkpoints to come."""
        if not self._on:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        size = sum(p.size * 4 for p in self._network.get_parameters())
        files = max(0, worker_files(self._config, iterations, workers) - len(self._written))
        what = f"{files} checkpoints of {workers} worker(s)"
        require_disk(self._folder, files * size, what)

    def save(self, iteration: int) -> None:
        """Write the model after `iteration`; a failed write leaves earlier files intact."""
        if not self._on:
            return
        target = self._file(iteration)
        self._write(target)
        say(self._label, f"saved {target}")
        self._written = [path for path in self._written if path != target] + [target]
        while self._kept and len(self._written) > self._kept:
            self._written.pop(0).unlink(missing_ok=True)

    def save_last(self, iteration: int) -> None:
        """Write the job's last model if this silo took no part in `iteration`."""
        if not self._file(iteration).exists():
            self.save(iteration)

    def _file(self, iteration: int) -> Path:
        return self._folder / f"{self._user}-fast-rcnn-{iteration - 1}epoch.ckpt"

    def save_best(self) -> None:
        """Write the current model as the best one, replacing an earlier one."""
        if self._on:
            self._write(self.best)

    def _write(self, target: Path) -> None:
        try:
            # The folder may have been removed; if the worker's own folder is gone, so is the job.
            if self._folder.parents[1].is_dir():
                self._folder.mkdir(parents=True, exist_ok=True)
            with whole_file(target, durable=True, partial=self._partial) as partial:
                save_network(self._network, partial, self._mark)
        except OSError as error:
            raise SyncError(f"{target} could not be written: {reason(error)}") from error
