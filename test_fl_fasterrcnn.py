"""Run one process of a federation, as the launchers start it: scheduler, server or worker.

  python test_fl_fasterrcnn.py --ms_role=MS_SCHED  --yaml_config=default_yaml_config.yaml \\
         --scheduler_manage_address=127.0.0.1:18019
  python test_fl_fasterrcnn.py --ms_role=MS_SERVER --yaml_config=default_yaml_config.yaml \\
         --http_server_address=127.0.0.1:6668 --tcp_server_ip=127.0.0.1 --checkpoint_dir=./fl_ckpt
  python test_fl_fasterrcnn.py --ms_role=MS_WORKER --yaml_config=default_yaml_config.yaml \\
         --dataset_path=datasets/coco_split/split_100 --user_id=0 \\
         --http_server_address=127.0.0.1:6668

It runs in the foreground and prints what the launchers write into scheduler.log, server.log and
worker.log. Scheduler and server run until a signal ends them, a worker until the last iteration.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from src.errors import require_packages, run_command

require_packages()

from src.federated.tls import engine_tls
from src.job.addresses import parse_address
from src.job.disk_room import shard_of
from src.job.job_config import JobConfig
from src.job.job_record import state_folder
from src.launch.command_line import JOB_FLAGS, add_worker_flags, job_from, launcher_parser
from src.launch.foreground import use_fetched
from src.launch.membership import name_silo
from src.launch.rank_flags import add_rank_flags
from src.launch.supervise import own_output
from src.model_utils.config import Config, get_config
from src.model_utils.moxing_adapter import moxing_wrapper


def job_of(config: Config) -> JobConfig:
    """Return the federation's configuration; where flags change it, in a file for the engine."""
    job = job_from(config)
    # We resolve its relative names of certificates against its folder, the engine against this one.
    if job.tls is None and all(getattr(config, flag) is None for flag in JOB_FLAGS):
        return job
    return replace(job, path=job.write(state_folder(config.output_dir) / f"{config.ms_role}.yaml"))


def start_one_scheduler(config: Config | None = None) -> None:
    """Run the scheduler until a signal ends it."""
    config = config or role_config()
    parse_address(config.scheduler_manage_address, "--scheduler_manage_address")
    job = job_of(config)
    tls = engine_tls(job, "scheduler", config.scheduler_manage_address)
    from src.federated.server import run_scheduler

    run_scheduler(str(job.path), config.scheduler_manage_address, tls)


def start_one_server(config: Config | None = None) -> None:
    """Run one server until a signal ends it."""
    config = config or role_config()
    parse_address(config.http_server_address, "--http_server_address")
    job = job_of(config)
    tls = engine_tls(job, "server", config.http_server_address)
    from src.federated.server import run_server
    from src.launch.redis_store import JobStore

    run_server(
        config.label or "server",
        str(job.path),
        config.http_server_address,
        config.tcp_server_ip,
        config.checkpoint_dir,
        tls,
        config.max_model_change,
        JobStore(job.redis_address, job.name, tls=job.tls).uploaded,
    )


def train_fasterrcnn_(config: Config | None = None) -> tuple[int, Any]:
    """Return this silo's batches: their number in an epoch, and the data set."""
    config = config or role_config()
    from src.training import open_shard

    dataset = open_shard(config, shard_of(config))
    return dataset.get_dataset_size(), dataset


def start_one_worker(config: Config | None = None) -> int:
    """Train on this silo's shard until the last iteration is done; return the exit code."""
    return _train_worker(config or role_config())


@moxing_wrapper(pre_process=use_fetched)
def _train_worker(config: Config) -> int:
    from src.federated.worker import run_worker
    from src.training import DetectorTask

    job = job_of(config)
    name_silo(job, config)
    return run_worker(job, config, DetectorTask)


ROLES = {
    "MS_SCHED": start_one_scheduler,
    "MS_SERVER": start_one_server,
    "MS_WORKER": start_one_worker,
}


def _path_or_none(text: str) -> Path | None:
    return Path(text) if text else None


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number: 3 is the worker of mindrecord_3; its name is --silo_name"
        )
    return int(text)


def role_parser() -> argparse.ArgumentParser:
    """Return the flags of all three roles."""
    parser = launcher_parser(__doc__)
    parser.add_argument("--ms_role", choices=sorted(ROLES), default="MS_WORKER")
    parser.add_argument("--label", default="", help="name in the log (default: role and number)")
    parser.add_argument("--scheduler_manage_address", default="127.0.0.1:18019")
    parser.add_argument("--tcp_server_ip", default="127.0.0.1")
    parser.add_argument("--checkpoint_dir", default="./fl_ckpt")
    parser.add_argument(
        "--user_id", type=_number, default=0, help="number of the worker and its shard"
    )
    parser.add_argument("--local_worker_num", type=int, default=1, help="workers on this machine")
    parser.add_argument("--output_dir", type=Path, default=Path(), help="for ckpt/ and loss_0.log")
    parser.add_argument("--status_file", type=_path_or_none, help="JSON file to keep up to date")
    add_rank_flags(parser)
    parser.add_argument("--rank", type=int, default=0, help="this process's number in its silo")
    add_worker_flags(parser)
    return parser


def role_config() -> Config:
    """Return the configuration of this process's command line."""
    return get_config(parser=role_parser())


def main() -> int | None:
    """Parse the command line, then run the role."""
    own_output()
    config = role_config()
    return ROLES[config.ms_role](config)


if __name__ == "__main__":
    run_command(main)
