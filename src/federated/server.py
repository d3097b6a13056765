"""A server: the engine's aggregation; its recovery files are whole, and the user's own are kept."""

from __future__ import annotations

import os
from pathlib import Path

from mindspore_federated import FLServerJob
from mindspore_federated.startup.feature_map import FeatureMap
from mindspore_federated.startup.federated_local import save_ms_checkpoint

from src.federated.console import say
from src.launch.recovery_files import list_recovery_files, recovery_name

KEPT_FILES = 3


class ServerJob(FLServerJob):
    """The engine's server with another way to keep its checkpoints.

    The engine writes in place, so that a kill leaves half a newest file, and deletes all but three
    files whoever made them. This one writes beside and renames, and deletes only its own.

    Args:
        label: the name in its log lines, for example server_0.
        yaml_config, http_server_address, tcp_server_ip, checkpoint_dir: as `FLServerJob`.
    """

    def __init__(
        self,
        label: str,
        yaml_config: str,
        http_server_address: str,
        tcp_server_ip: str,
        checkpoint_dir: str,
    ):
        super().__init__(yaml_config, http_server_address, tcp_server_ip, checkpoint_dir)
        self._label = label
        self._folder = Path(checkpoint_dir)
        self._not_ours = {f.path for f in list_recovery_files(self._folder, self.fl_name)}

    def _get_current_recovery_ckpt_files(self) -> list[tuple[int, str, str]]:
        files = list_recovery_files(self._folder, self.fl_name)
        return [(f.iteration, f.stamp, str(f.path)) for f in files]

    def _save_feature_map(self, feature_map: FeatureMap, iteration_num: int) -> str:
        target = self._folder / recovery_name(self.fl_name, iteration_num)
        partial = self._folder / f".{os.getpid()}.partial.ckpt"
        try:
            save_ms_checkpoint(str(partial), feature_map)
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            say(self._label, f"WARNING: {target} was not written: {error}")
            return ""
        say(self._label, f"iteration {iteration_num} is done, its model is {target}")
        for old in self._own_files()[KEPT_FILES:]:
            old.unlink(missing_ok=True)
        return str(target)

    def _own_files(self) -> list[Path]:
        """Recovery files of this job, newest first, without those that were there at the start."""
        files = list_recovery_files(self._folder, self.fl_name)
        return [f.path for f in files if f.path not in self._not_ours and f.iteration > 0]


def run_server(
    label: str, yaml_config: str, http_server_address: str, tcp_server_ip: str, checkpoint_dir: str
) -> None:
    """Aggregate what silos send to `http_server_address` until a signal ends it.

    The initial model is the newest recovery file in `checkpoint_dir`.

    Raises:
        RuntimeError: the engine cannot start: no model, a taken port, another model in Redis.
    """
    job = ServerJob(label, yaml_config, http_server_address, tcp_server_ip, checkpoint_dir)
    job.run()
