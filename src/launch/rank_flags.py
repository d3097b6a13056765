"""Define the flags of a silo that consists of several processes, and check their values."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

from src.data.mindrecord import BASE_NAME
from src.errors import UserError
from src.federated.aggregation import ALGORITHMS, aggregation_of
from src.federated.privacy import privacy_settings
from src.job.addresses import parse_address, require_free_port
from src.job.checks import WARN, Check, Finding
from src.job.disk_room import data_folder
from src.job.job_config import JobConfig
from src.job.job_record import RANKS
from src.launch.command_line import add_bool
from src.launch.machine_jobs import require_other_silos
from src.launch.membership import name_silo
from src.launch.preflight.data import require_shards
from src.launch.preflight.machine import device, memory, worker_bytes
from src.launch.preflight.roles import worker_checks
from src.launch.processes import require_not_running

# Rank 0 alone saves checkpoints, evaluates, keeps the silo's state and talks to the servers.
OF_RANK_0 = ("disk", "resume", "servers", "val_set")

# Passed to every rank.
RANK_FLAGS = ("device_num", "rank_host", "rank_port", "rank_timeout")


def add_rank_flags(parser: argparse.ArgumentParser, device_num: int = 1) -> None:
    """Add the flags that the distributed launcher takes and passes to each rank.

    Args:
        device_num: the default of --device_num.
    """
    parser.add_argument(
        "--device_num",
        type=int,
        default=device_num,
        help=f"ranks of the silo, on all its machines (default {device_num})",
    )
    add_bool(parser, "--run_distribute", False, "the ranks train one silo together")
    parser.add_argument(
        "--rank_host",
        default="127.0.0.1",
        help="address of the machine of rank 0, as the silo's other machines see it "
        "(default 127.0.0.1: all ranks are here)",
    )
    parser.add_argument(
        "--rank_port", type=int, default=18119, help="port of rank 0 (default 18119)"
    )
    parser.add_argument(
        "--rank_timeout",
        type=float,
        default=7200.0,
        metavar="SECONDS",
        help="longest silence of another rank; rank 0 is silent while it waits for the other silos "
        "and while it evaluates (default 7200); one that ends is noticed at once",
    )


def add_local_rank_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which ranks start on this machine."""
    parser.add_argument("--first_worker_id", type=int, default=0, help="number of the silo")
    parser.add_argument(
        "--first_rank", type=int, default=0, help="number of the first rank here (default 0)"
    )
    parser.add_argument(
        "--local_rank_num",
        type=int,
        default=0,
        help="ranks on this machine (default 0: all from --first_rank on)",
    )


def local_ranks(config: Any) -> range:
    """Return the numbers of the ranks to start on this machine.

    Raises:
        UserError: the flags do not fit together.
    """
    first, count, size = config.first_rank, config.local_rank_num, config.device_num
    if size < 1:
        raise UserError(f"--device_num is {size}, expected 1 or more")
    if not config.run_distribute:
        raise UserError(
            f"--device_num {size} without --run_distribute=True: the ranks of one silo train "
            "together; silos that train each for itself are started with "
            "run_cross_silo_fasterrcnn_worker.py --local_worker_num"
        )
    count = count or size - first
    if first < 0 or count < 1 or first + count > size:
        raise UserError(
            f"--first_rank {first} --local_rank_num {config.local_rank_num}: expected ranks within "
            f"0 to {size - 1} (--device_num {size})"
        )
    if count < size and config.device_target != "CPU":
        raise UserError(
            f"--first_rank, --local_rank_num: on {config.device_target} mpirun starts the ranks of "
            "all machines at once; give it their names in OMPI_MCA_orte_default_hostfile instead"
        )
    return range(first, first + count)


def rank_checks(job: JobConfig, base: Path, config: Any) -> list[Check]:
    """Return the checks of what a silo's ranks on this machine need before they start."""
    ranks = local_ranks(config)
    one = copy.copy(config)
    one.local_worker_num = 1

    def not_running() -> str:
        require_not_running(base, [RANKS])
        if 0 in ranks:
            require_other_silos(base, job, config, {config.first_worker_id: RANKS})
        return f"no {RANKS} of this folder runs"

    def shards() -> str:
        data, file_name = data_folder(config).absolute(), config.prefix or BASE_NAME
        per_step = config.batch_size * config.device_num
        return require_shards(
            data, [config.first_worker_id], file_name, per_step, config.coco_classes
        )

    def address() -> str | Finding:
        host, port = parse_address(f"{config.rank_host}:{config.rank_port}", "--rank_port")
        if 0 in ranks:
            require_free_port(host, port, "--rank_host, --rank_port")
        text = f"rank 0 of {config.device_num} at {host}:{port}"
        if len(ranks) < config.device_num and host.startswith("127."):
            reached = "only ranks on this machine reach it; another machine needs --rank_host"
            return Finding(WARN, "rank", f"{text}: {reached}")
        return text

    def room() -> str | Finding:
        return memory(f"{len(ranks)} rank(s)", len(ranks) * worker_bytes(config))

    own = {
        "mindrecord": shards,
        "device": lambda: device(config.device_target, len(ranks), config.threads),
        "memory": room,
    }
    checks = [
        c if c.subject not in own else Check(c.subject, own[c.subject])
        for c in worker_checks(job, base, one)
        if c.subject != "roster" and (0 in ranks or c.subject not in OF_RANK_0)
    ]
    return [
        Check("roster", lambda: name_silo(job, config)),
        Check("running", not_running),
        Check("ranks", lambda: require_averaging(job, config)),
        Check("rank", address),
        *checks,
    ]


def require_averaging(job: JobConfig, config: Any) -> str:
    """Raise a UserError for what only silos of one process support so far."""
    aggregation = aggregation_of(job, config)
    if not aggregation.facts.supports_ranks or privacy_settings(job, config):
        names = " or ".join(kind for kind, facts in ALGORITHMS.items() if facts.supports_ranks)
        raise UserError(
            f"--device_num: a silo of several ranks takes part in {names} with sync_type fixed and "
            f"without differential privacy only, found {aggregation.words()}; give "
            "--device_num=1, or the federation those settings"
        )
    return f"{config.device_num} rank(s) train one silo"
