"""A server: runs the engine's aggregation, and keeps the models that silos can continue from.

Its recovery files are never partial, and the user's own files are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Callable

import numpy as np
import redis
from mindspore_federated import FlSchedulerJob, FLServerJob, SSLConfig
from mindspore_federated.startup.feature_map import FeatureMap
from mindspore_federated.startup.federated_local import load_ms_checkpoint, save_ms_checkpoint

from src.errors import UserError
from src.federated.aggregation import ALGORITHMS, CONTROL, Aggregation, algorithm_in
from src.federated.engine_settings import checked_settings
from src.federated.fingerprint import FEATURE_NAME
from src.federated.model_bounds import ModelBounds
from src.files import Lossy, reason, whole_file
from src.job.iteration_results import REFUSED_MODELS, note_refused
from src.job.job_config import load_job
from src.job.log_files import say
from src.job.recovery_files import list_recovery_files, recovery_name, usable_files
from src.weights.ckpt_file import mark_fault

KEPT_FILES = 3


class ServerJob(FLServerJob):
    """The engine's server, with safe checkpoints and a check of each model.

    The engine writes in place, so that a kill leaves a partial newest file, and it deletes all but
    three files, whoever made them. This class writes under another name and renames, skips files
    that are broken nevertheless, and deletes only its own. A job of Scaffold continues with the
    control variates of its file, where the engine begins with zeros.

    A model that honest training cannot have produced is not kept: the last good one replaces it, in
    this server's memory too. Only one of several servers is told of an iteration's end, so others
    may still return the bad model; silos check what they receive themselves (`Silo`).

    Args:
        label: the name in its log lines, for example server_0.
        yaml_config, http_server_address, tcp_server_ip, checkpoint_dir: see `FLServerJob`.
        aggregation: the settings that the model must have been made for; None if any will do.
        tls: passwords of the file's certificates if its enable_ssl is True.
        max_change: see `ModelBounds`.
        senders: returns the identities whose uploads are in an iteration's model; raises a
            redis.RedisError if they are unknown.
        metrics: the engine's file of results, next to which models that are not kept are noted.
    """

    aggregation_type: str  # an attribute of the base class, whose package has no types
    _failure = ""  # why the iteration that has just ended failed

    def __init__(
        self,
        label: str,
        yaml_config: str,
        http_server_address: str,
        tcp_server_ip: str,
        checkpoint_dir: str,
        aggregation: Aggregation | None = None,
        tls: SSLConfig | None = None,
        max_change: float = 0.0,
        senders: Callable[[int], list[str]] | None = None,
        metrics: Path | None = None,
    ):
        with checked_settings():
            super().__init__(yaml_config, http_server_address, tcp_server_ip, checkpoint_dir, tls)
        self._has_controls = ALGORITHMS[self.aggregation_type].has_controls
        # The base class reads it only to add zero controls to the existing ones.
        self.aggregation_type = ""
        self._aggregation = aggregation
        self._label = label
        self._folder = Path(checkpoint_dir)
        # No other server uses this name, and what a killed one leaves is overwritten.
        self._partial = self._folder / f".{http_server_address}.partial.ckpt"
        self._not_ours = {f.path for f in list_recovery_files(self._folder, self.fl_name)}
        self._bounds = ModelBounds(max_change)
        self._mark: np.ndarray | None = None  # the fingerprint that models must have
        self._senders = senders
        self._metrics = metrics
        self._notes = Lossy(REFUSED_MODELS, partial(say, label))

    def _load_feature_map(self, feature_map: Any, recovery_ckpt_files: list) -> FeatureMap:
        loaded = super()._load_feature_map(feature_map, recovery_ckpt_files)
        mark = loaded.feature_map().get(FEATURE_NAME)
        if self._aggregation and mark and not self._aggregation.made_for(mark.data):
            raise UserError(
                f"{self._folder}: the newest model of {self.fl_name} was made for another "
                f"algorithm than {self._aggregation.kind}; set aggregation.* as it was, or take "
                "another --checkpoint_dir"
            )
        if self._has_controls:
            _add_controls(loaded)
        self._mark = mark.data.copy() if mark else None
        newest = self._get_current_recovery_iteration(recovery_ckpt_files) - 1
        self._bounds.keep(_arrays(loaded), newest)
        return loaded

    def _get_current_recovery_ckpt_files(self) -> list[tuple[int, str, str]]:
        files, warnings = usable_files(self._folder, self.fl_name)
        for line in warnings:
            say(self._label, f"WARNING: {line}")
        return [(f.iteration, f.stamp, str(f.path)) for f in files]

    def on_iteration_end_callback(
        self,
        feature_list: Any,
        fl_name: str,
        instance_name: str,
        iteration_num: int,
        iteration_valid: bool,
        iteration_reason: str,
    ) -> None:
        """Keep the model; after a failed iteration it is the previous one."""
        self._failure = "" if iteration_valid else " ".join(iteration_reason.split()) or "no reason"
        model = {feature.feature_name: feature.data for feature in feature_list}
        self._take_up_newer(iteration_num)
        fault = self._fault(model, iteration_num)
        if fault:
            self._put_back(model, iteration_num, fault)
            return
        self._bounds.keep(model, iteration_num)
        super().on_iteration_end_callback(
            feature_list, fl_name, instance_name, iteration_num, iteration_valid, iteration_reason
        )

    def _save_feature_map(self, feature_map: FeatureMap, iteration_num: int) -> str:
        target = self._folder / recovery_name(self.fl_name, iteration_num)
        try:
            with whole_file(target, durable=True, partial=self._partial) as partial:
                save_ms_checkpoint(str(partial), feature_map)
        except OSError as error:
            say(self._label, f"WARNING: {target} was not written: {reason(error)}")
            return ""
        said = f"iteration {iteration_num} is done, its model is {target}"
        if self._failure:
            said = (
                f"WARNING: iteration {iteration_num} failed ({self._failure}); the model of before "
                f"is kept, in {target}"
            )
        say(self._label, said)
        for old in self._own_files()[KEPT_FILES:]:
            old.unlink(missing_ok=True)
        return str(target)

    def _fault(self, model: Mapping[str, np.ndarray], iteration: int) -> str:
        """Return why a finished model must not be used to continue, or ""."""
        mark = model.get(FEATURE_NAME)
        wrong = mark_fault(self._mark, mark) if self._mark is not None and mark is not None else ""
        return self._bounds.fault(model, iteration) or wrong

    def _take_up_newer(self, iteration: int) -> None:
        """Load the last good model from the file of another server that was told of it."""
        files = list_recovery_files(self._folder, self.fl_name)
        newer = [f for f in files if self._bounds.iteration < f.iteration < iteration]
        if newer and self._bounds.good:
            model = load_ms_checkpoint(str(newer[0].path))
            self._bounds.keep(_arrays(model), newer[0].iteration)

    def _put_back(self, model: Mapping[str, np.ndarray], iteration: int, fault: str) -> None:
        """Make the engine continue from the last good model: `model` is the engine's own memory."""
        uploads = "the failed iteration has none"
        if not self._failure:
            uploads = self._uploads_in(iteration)
            if self._metrics is not None:
                self._notes.do(partial(note_refused, self._metrics, iteration))
        good = self._bounds.good
        for name, array in model.items():
            if name in good:
                np.copyto(array, good[name])
        say(
            self._label,
            f"WARNING: the model of iteration {iteration} is not kept: {fault}; uploads in it: "
            f"{uploads}; the model of iteration {self._bounds.iteration} takes its place. If it "
            "happens again one of these silos sends what ruins it, or somebody else reaches this "
            "server (docs/recovery.md)",
        )

    def _uploads_in(self, iteration: int) -> str:
        try:
            names = self._senders(iteration) if self._senders else []
        except (redis.RedisError, UnicodeDecodeError) as error:
            return f"not known ({error})"
        # The sender chooses the name, so it must not be able to forge a log line.
        return ", ".join(map(repr, names)) or "not known"

    def _own_files(self) -> list[Path]:
        """Return this job's recovery files, newest first, without those present at the start."""
        files = list_recovery_files(self._folder, self.fl_name)
        return [f.path for f in files if f.path not in self._not_ours and f.iteration > 0]


def _arrays(features: FeatureMap) -> dict[str, np.ndarray]:
    return {name: feature.data for name, feature in features.feature_map().items()}


def _add_controls(features: FeatureMap) -> None:
    """Add zero control variates for the weights that have none yet."""
    held = dict(features.feature_map())
    for name, feature in held.items():
        has_none = CONTROL + name not in held and name != FEATURE_NAME
        if has_none and not name.startswith(CONTROL):
            features.add_feature(CONTROL + name, np.zeros_like(feature.data), require_aggr=True)


def run_server(
    label: str,
    yaml_config: str,
    http_server_address: str,
    tcp_server_ip: str,
    checkpoint_dir: str,
    tls: SSLConfig | None = None,
    max_change: float = 0.0,
    senders: Callable[[int], list[str]] | None = None,
) -> None:
    """Aggregate the silos' uploads to `http_server_address` until a signal ends the process.

    The initial model is the newest recovery file in `checkpoint_dir`. For the arguments see
    `ServerJob`.

    Raises:
        UserError: the model was made for another aggregation algorithm, or no file is intact.
        RuntimeError: the engine cannot start: no model, a port in use, another model in Redis.
    """
    values = load_job(yaml_config)
    job = ServerJob(
        label,
        yaml_config,
        http_server_address,
        tcp_server_ip,
        checkpoint_dir,
        Aggregation(*algorithm_in(values)),
        tls,
        max_change,
        senders,
        Path(values["summary.metrics_file"]),
    )
    job.run()


def run_scheduler(yaml_config: str, manage_address: str, tls: SSLConfig | None = None) -> None:
    """Serve the management API at `manage_address` until a signal ends the process.

    Args:
        yaml_config: path of the federation's YAML file.
        manage_address: "ip:port".
        tls: passwords of the file's certificates if its enable_ssl is True.

    Raises:
        UserError: the file is invalid.
        RuntimeError: the engine cannot start, for example because the port is in use.
    """
    with checked_settings():
        job = FlSchedulerJob(yaml_config, manage_address, tls)
    job.run()
