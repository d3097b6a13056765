"""What a worker leaves on its disk and takes up again, before it is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from src.federated.aggregation import aggregation_of
from src.federated.resume_state import (
    BrokenStateError,
    describe_state,
    state_file,
    terms_of_state,
)
from src.job.checks import WARN, Check, Finding
from src.job.disk_room import disk_room, kept_files, worker_files
from src.job.job_config import JobConfig
from src.job.job_record import RANKS, role_folder
from src.job.shard_folder import data_folder
from src.launch.detector_size import FLOAT_BYTES, count_values, model_bytes, trained_shapes


def worker_numbers(config: Any) -> range:
    """The numbers of the workers that this machine starts."""
    return range(config.first_worker_id, config.first_worker_id + config.local_worker_num)


def worker_disk(job: JobConfig, base: Path, config: Any) -> str:
    """The room for the checkpoints to come, and for the states of --resume.

    Raises:
        UserError: there is less.
    """
    files = worker_files(config, job.iterations, config.local_worker_num)
    if config.resume:
        shards = [f"mindrecord_{number}" for number in worker_numbers(config)]
        folders = [_output(base, config, n) / "ckpt" for n in worker_numbers(config)]
        there = sum(len(kept_files(f / shard, shard)) for f, shard in zip(folders, shards))
        files = max(0, files - there)
    what, needed = f"{files} checkpoints", files * model_bytes(config)
    if config.resume_state:
        # A new one is written beside the one before.
        models = 2 * aggregation_of(job, config).resume_models * config.local_worker_num
        needed += models * FLOAT_BYTES * count_values(trained_shapes(config))
        what += " and the states for --resume"
    return disk_room(base, needed, what)


def resume_checks(job: JobConfig, base: Path, config: Any) -> list[Check]:
    """Whether the states that --resume is to go on from are of this job; none without it."""

    def states() -> str | Finding:
        found, broken = [], []
        for number in worker_numbers(config):
            shard = data_folder(config).absolute() / f"mindrecord_{number}"
            path = state_file(_output(base, config, number), shard)
            try:
                found.append(describe_state(path, terms_of_state(job, config, shard)))
            except BrokenStateError as error:
                broken.append(f"{error}; the worker goes on without momentum")
        text = "; ".join([*broken, *found])
        return Finding(WARN, "resume", text) if broken else text

    return [Check("resume", states, after="mindrecord")] if config.resume else []


def _output(base: Path, config: Any, number: int) -> Path:
    together = getattr(config, "run_distribute", False)
    return base / (RANKS if together else role_folder("worker", number))
