"""Starting one silo that consists of several processes: its ranks."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.federated.identity import silo_label
from src.job.checks import require
from src.job.job_config import JobConfig
from src.job.job_record import RANKS
from src.job.log_files import rotation
from src.launch.launchers import note_job, start_all, worker_flags, worker_joined
from src.launch.machine_jobs import addresses_of, take_threshold, tell_missing_silos
from src.launch.processes import Role, Started
from src.launch.rank_flags import RANK_FLAGS, local_ranks, rank_checks
from src.model_utils.config import PROJECT_DIR
from src.printing import print

RUNNER = PROJECT_DIR / "src" / "launch" / "rank_runner.py"


def launch_ranks(job: JobConfig, config: Any, base: Path) -> list[Started]:
    """Start this machine's ranks in the folder `base`; return when the silo has joined.

    Args:
        job: the federation's configuration.
        config: keys of default_config.yaml, and the distributed launcher's own flags.
        base: of the silo's folder and of the record of what runs.

    Returns:
        The one process above the ranks.
    """
    ranks = local_ranks(config)
    require(rank_checks(job, base, config))
    take_threshold(base, job, config)
    note_job(base, job)
    threads = config.threads or max(1, (os.cpu_count() or 1) // len(ranks))
    command = worker_flags(job, config, base, RANKS, config.first_worker_id, threads)
    command += ["--run_distribute=True", "--local_worker_num=1"]
    command += [f"--device_id={config.device_id}"]
    command += [f"--{name}={getattr(config, name)}" for name in RANK_FLAGS]
    role = Role(
        role=RANKS,
        number=config.first_worker_id,
        argv=_started_by(config, base / RANKS, ranks, command),
        env={"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)},
        silo=silo_label(config.silo_name, config.first_worker_id) if 0 in ranks else "",
        servers=addresses_of(config),
        rotation=rotation(config),
        goes_on=config.resume,
    )
    timeout_s = config.start_timeout + config.join_timeout
    started = start_all(base, [role], timeout_s, lambda one: worker_joined(base, one))
    here = f"rank(s) {ranks[0]} to {ranks[-1]} of {config.device_num}"
    print(f"worker_{config.first_worker_id}, {here}, has joined {job.name}")
    if 0 in ranks:
        tell_missing_silos(base, job, config)
    print(f'next: cd {RANKS}/log_output && grep -rn "epoch" *   follows the training')
    print("      finish_cross_silo_fasterrcnn.py   stops it; it ends by itself when it is done")
    return started


def _started_by(config: Any, folder: Path, ranks: range, command: list[str]) -> list[str]:
    """The command that starts all ranks of this machine.

    Nobody has run mpirun's yet; the engine's wheel for GPU and Ascend needs a machine of its own.
    """
    if config.device_target == "CPU":
        numbers = [ranks[0], len(ranks), *rotation(config)]
        return [sys.executable, str(RUNNER), str(folder), *map(str, numbers), *command]
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        raise UserError(
            f"device_target: {config.device_target}: several ranks are started by mpirun, which is "
            "not on the PATH; install OpenMPI 4, or give --device_target=CPU"
        )
    log = ["--output-filename", str(folder / "log_output"), "--merge-stderr-to-stdout"]
    return [mpirun, "--allow-run-as-root", "-n", str(len(ranks)), *log, *command]
