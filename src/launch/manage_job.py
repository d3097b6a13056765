"""The management commands of tools/status.py: which scheduler, which Redis, which job is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from src.errors import UserError
from src.job.addresses import parse_address
from src.job.job_config import JobConfig, load_job
from src.job.job_record import FOLDER, JobRecord, read_record, require_own
from src.launch.command_line import JOB_FLAGS
from src.launch.management import Management, disable, enable, new_instance
from src.launch.redis_store import JobStore
from src.reporting.run_folder import started_commands

# Those of a job that a user may look up or change; the others are of no effect between silos.
SHOWN = (
    "fl_iteration_num",
    "start_fl_job_threshold",
    "start_fl_job_time_window",
    "update_model_ratio",
    "update_model_time_window",
    "global_iteration_time_window",
    "aggregation_type",
    "enable_ssl",
)


def run_management(command: str, folder: Path, args: Any) -> list[str] | dict[str, Any]:
    """Run query, enable, disable or new-instance on the job of `folder`.

    Args:
        args: scheduler_manage_address, json, force, yaml_config and the flags that change it.

    Returns:
        Lines for the user; for query with `args.json` all settings.

    Raises:
        UserError: no job there, no scheduler, or the command is refused with its reason.
        redis.RedisError: the job's Redis does not answer.
    """
    record = read_record(folder)
    if record is None:
        raise UserError(f"no job was started from {folder}: give --folder")
    require_own(folder)
    address = _scheduler(record, args.scheduler_manage_address)
    management = Management(address, tls=record.tls_files)
    if command == "query":
        settings = management.query()
        return settings if args.json else [f"{key:32}{settings.get(key)}" for key in SHOWN]
    redis_address = parse_address(record.redis, "job record")
    store = JobStore(redis_address, record.fl_name, tls=record.tls_files)
    try:
        if command == "enable":
            return enable(management, store)
        if command == "disable":
            return disable(management, store, args.force)
        job, checkpoints = _job(folder, record, args), _checkpoint_dir(folder)
        return new_instance(management, store, job, checkpoints, args.force)
    finally:
        store.close()


def _scheduler(record: JobRecord, given: str) -> str:
    started = [process.address for process in record.running("scheduler")]
    if not given and not started:
        raise UserError(
            f"no scheduler of {record.fl_name} was started from here: start it with "
            "run_cross_silo_fasterrcnn_sched.py, or give --scheduler_manage_address"
        )
    return given or started[0]


def _job(folder: Path, record: JobRecord, args: Any) -> JobConfig:
    """The settings of the new instance."""
    path = args.yaml_config or folder / FOLDER / "yaml_config.yaml"
    changes = {key: getattr(args, flag, None) for flag, key in JOB_FLAGS.items()}
    job = load_job(path, {**changes, "fl_name": record.fl_name if args.yaml_config else None})
    if job.redis_address != parse_address(record.redis, "job record"):
        raise UserError(
            f"{job.path}: distributed_cache.address is not the job's Redis, {record.redis}; give "
            "this job's own file"
        )
    return job


def _checkpoint_dir(folder: Path) -> Path | None:
    """Where the servers of `folder` keep their models; None where none was started from it."""
    prefix = "--checkpoint_dir="
    for label, command in started_commands(folder).items():
        if label.startswith("server_"):
            given = [word[len(prefix) :] for word in command if word.startswith(prefix)]
            return Path(given[-1]) if given else None
    return None
