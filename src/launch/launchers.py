"""Start what the run_* scripts ask for: check, start, wait until ready, and report."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Callable

from src.errors import UserError, user_path
from src.federated.identity import silo_label
from src.files import reason
from src.job.addresses import listens, parse_address
from src.job.checks import require
from src.job.disk_room import data_folder
from src.job.job_config import JobConfig
from src.job.job_record import (
    COPIED,
    RANKS,
    read_status,
    role_folder,
    state_folder,
    status_path,
    update_record,
)
from src.job.job_start import note_start
from src.job.log_files import last_lines, rotation
from src.job.recovery_files import require_iterations_left
from src.launch.command_line import WORKER_FLAGS
from src.launch.machine_jobs import addresses_of, take_threshold, tell_missing_silos
from src.launch.preflight.cost import job_time, remembered
from src.launch.preflight.machine import threads_each
from src.launch.preflight.roles import scheduler_checks, server_checks, worker_checks
from src.launch.processes import (
    Role,
    Started,
    start,
    stop_started,
    wait_until_ready,
)
from src.launch.rank_flags import RANK_FLAGS, local_ranks, rank_checks
from src.launch.redis_store import JobStore
from src.launch.server_start import (
    consecutive_ports,
    ensure_initial_model,
    prepare_job,
    servers_to_start,
    start_words,
    unfit_initial,
)
from src.launch.supervise import GRACE_S
from src.model_utils.config import DEFAULT_CONFIG, PROJECT_DIR, Config, find_config_file
from src.printing import print
from src.security.passwords import FLAG
from src.security.tls import as_record

# Upstream's file has this value as summary.data_rate_dir.
UPSTREAM_RATES = ".."
# The engine sleeps up to 60 s before it ends when another value is set.
RATES_GRACE_S = 75.0
ROLE_SCRIPT = PROJECT_DIR / "test_fl_fasterrcnn.py"


def launch_scheduler(
    job: JobConfig,
    manage_address: str,
    timeout_s: float,
    log_rotation: tuple[int, int] = (0, 0),
    config_path: str = DEFAULT_CONFIG,
) -> list[Started]:
    """Start the scheduler in the current folder and return when it listens."""
    base = Path.cwd()
    require(scheduler_checks(job, base, manage_address))
    host, port = parse_address(manage_address, "--scheduler_manage_address")
    note_job(base, job)
    role = Role(
        role="scheduler",
        number=0,
        argv=role_command("MS_SCHED", job, base, config_path)
        + [f"--scheduler_manage_address={host}:{port}"],
        address=f"{host}:{port}",
        job_end=_job_end(job, 0, 60.0),
        env={"GLOG_v": "1"},
        rotation=log_rotation,
    )
    started = start_all(base, [role], timeout_s, lambda _: listens(host, port))
    scheme = "https" if job.tls else "http"
    print(f"the scheduler of {job.name} listens on {host}:{port}: {scheme}://{host}:{port}/state")
    print("next: run_cross_silo_fasterrcnn_server.py")
    return started


def launch_servers(job: JobConfig, config: Config) -> list[Started]:
    """Start the servers in the current folder and return when they take requests.

    Args:
        job: the federation's configuration.
        config: keys of default_config.yaml (they make the initial model where checkpoint_dir has
            none), and the server launcher's own flags.
    """
    base = Path.cwd()
    if config.enable_modelarts:
        print("note: enable_modelarts is for workers; servers fetch and send nothing")
    require(server_checks(job, base, config))
    host, first_port = parse_address(config.http_server_address, "--http_server_address")
    ports = consecutive_ports(first_port, config.local_server_num)
    numbers = servers_to_start(base, len(ports), config.resume)
    store = _store(job)
    checkpoint_dir = user_path(config.checkpoint_dir).absolute()
    aside, _ = unfit_initial(job, checkpoint_dir, config)
    prepare_job(job, store, checkpoint_dir, config.resume, aside)
    ensure_initial_model(job, checkpoint_dir, config)
    start_from = start_words(job, checkpoint_dir)
    first = _first_iteration(job, store, checkpoint_dir, config.resume)
    roster = str(user_path(config.roster).absolute()) if config.roster else ""
    note_job(base, job, roster)
    if not config.resume:
        note_start(base)
    grace_s = _grace_of_servers(job, base)  # before the engine's file leaves the key out
    command = role_command("MS_SERVER", job, base, config.config_path)
    roles = [
        Role(
            role="server",
            number=number,
            argv=command
            + [
                f"--http_server_address={host}:{ports[number]}",
                f"--tcp_server_ip={config.tcp_server_ip}",
                f"--checkpoint_dir={checkpoint_dir}",
                f"--max_model_change={config.max_model_change}",
                f"--label={role_folder('server', number)}",
            ],
            address=f"{host}:{ports[number]}",
            job_end=_job_end(job, ports[number], config.fetch_timeout, roster),
            env={"GLOG_v": "1"},
            rotation=rotation(config),
            grace_s=grace_s,
        )
        for number in numbers
    ]
    started = start_all(base, roles, config.start_timeout, lambda s: _server_answers(base, s))
    listed = [f"{host}:{port}" for port in ports]
    print(f"{len(listed)} server(s) of {job.name} take requests on {', '.join(listed)}")
    if first > job.iterations:
        print(
            f"all {job.iterations} iterations are done: silos that do not have the last model get "
            f"it within {config.fetch_timeout:.0f} s (--fetch_timeout). To train on, give servers "
            f"and workers more iterations: --resume --fl_iteration_num={job.iterations + 10}"
        )
    else:
        _say_what_comes_next(job, first, start_from, listed[0])
    return started


def _first_iteration(job: JobConfig, store: JobStore, checkpoint_dir: Path, resume: bool) -> int:
    """Return the first iteration for the servers to run; beyond the last one where all are done."""
    first = require_iterations_left(checkpoint_dir, job.name, job.iterations, resume=resume)
    if first > job.iterations:
        return first
    # A job that Redis knows continues where it is, whatever the files say.
    return int(store.status().get("iterationNum", first))


def _say_what_comes_next(job: JobConfig, first: int, start_from: str, address: str) -> None:
    threshold = job["round.start_fl_job_threshold"]
    silos = "1 silo has" if threshold == 1 else f"{threshold} silos have"
    print(f"iteration {first} of {job.iterations} begins when {silos} joined")
    if start_from:
        print(start_from)
    print(f"next: run_cross_silo_fasterrcnn_worker.py --http_server_address={address} on each silo")


def launch_workers(job: JobConfig, config: Config, base: Path) -> list[Started]:
    """Start the workers in the folder `base`; return them when each has joined the federation.

    Args:
        job: the federation's configuration.
        config: keys of default_config.yaml, and the worker launcher's own flags.
        base: parent folder of the workers' folders and of the record of what runs.
    """
    require(worker_checks(job, base, config))
    take_threshold(base, job, config)
    numbers = range(config.first_worker_id, config.first_worker_id + config.local_worker_num)
    note_job(base, job)
    threads = threads_each(config.threads, len(numbers))
    roles = [
        Role(
            role="worker",
            number=number,
            argv=worker_flags(job, config, base, role_folder("worker", number), number, threads)
            + [
                f"--local_worker_num={len(numbers)}",
                f"--device_id={config.device_id + number - numbers[0]}",
            ],
            silo=silo_label(config.silo_name, number),
            servers=addresses_of(config),
            env={"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)},
            rotation=rotation(config),
            goes_on=config.resume,
        )
        for number in numbers
    ]
    started = start_all(base, roles, config.start_timeout, lambda s: worker_joined(base, s))
    labels, have = ", ".join(role.label for role in roles), "has" if len(roles) == 1 else "have"
    print(f"{labels} {have} joined {job.name}: {job.iterations} iterations")
    if cost := remembered(base, config):
        print(f"time: {job_time(job, config, numbers, cost)}")
    tell_missing_silos(base, job, config)
    print(f'next: grep -rn "\\]epoch:" {roles[0].label}   follows the training')
    print("      finish_cross_silo_fasterrcnn.py   stops it; it ends by itself when it is done")
    return started


def worker_flags(
    job: JobConfig, config: Config, base: Path, label: str, number: int, threads: int
) -> list[str]:
    """Return the command of worker `number`, whose folder is `label`, without its device."""
    # The other flags are set for each worker.
    given = set(config.given_flags) - {"device_id", "threads"}
    return [
        *role_command("MS_WORKER", job, base, config.config_path),
        f"--dataset_path={data_folder(config).absolute()}",
        f"--user_id={number}",
        f"--threads={threads}",
        f"--output_dir={base / label}",
        f"--status_file={status_path(base, label)}",
        *(f"--{name}={getattr(config, name)}" for name in WORKER_FLAGS),
        *(f"--{name}={getattr(config, name)}" for name in sorted(given)),
    ]


def _store(job: JobConfig) -> JobStore:
    return JobStore(job.redis_address, job.name, tls=job.tls)


def role_command(ms_role: str, job: JobConfig, base: Path, config_path: str) -> list[str]:
    """Return the command of a role, with the federation's file as the flags have changed it.

    Every role reads the launcher's file of detector and training: another file may be broken.
    """
    command = [
        sys.executable,
        str(ROLE_SCRIPT),
        f"--ms_role={ms_role}",
        f"--yaml_config={_effective_yaml(job, base)}",
        f"--config_path={find_config_file(config_path)}",
    ]
    return [*command, f"{FLAG}={job.ssl_passwords}"] if job.ssl_passwords else command


def _effective_yaml(job: JobConfig, base: Path) -> Path:
    """Write the file that the engine reads, with relative files of summary.* in server_0's folder.

    It leaves upstream's data_rate_dir out, see `_grace_of_servers`.
    """
    summary = job.values["summary"]
    for key in ("metrics_file", "failure_event_file"):
        summary[key] = str(base / "server_0" / summary[key])
    if summary.get("data_rate_dir") == UPSTREAM_RATES:
        summary["data_rate_dir"] = ""
    elif summary.get("data_rate_dir"):
        summary["data_rate_dir"] = str(base / user_path(summary["data_rate_dir"]))
    return job.write(state_folder(base) / "yaml_config.yaml")


def _grace_of_servers(job: JobConfig, base: Path) -> float:
    """Return the seconds that servers have to end after the job, by summary.data_rate_dir.

    With it, the engine writes the traffic of each second to a file once a minute, and ends only
    after it has slept until the end of that minute. Upstream's file has "..", which nobody chose:
    it is left out. Another folder is the user's choice.

    Raises:
        UserError: the folder cannot be made.
    """
    rates = job.get("summary.data_rate_dir")
    if not rates:
        return GRACE_S
    if rates == UPSTREAM_RATES:
        print(
            'note: summary.data_rate_dir: ".." is left out: with it each server takes up to a '
            "minute to end; name a folder of your own to have its traffic files (rounds.jsonl of "
            "each worker has bytes and seconds of each round)"
        )
        return GRACE_S
    folder = base / user_path(rates)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{job.path}: summary.data_rate_dir: {folder} cannot be made: {reason(error)}"
        ) from None
    print(f"note: summary.data_rate_dir: each server takes up to a minute to end, for {folder}")
    return RATES_GRACE_S


def _job_end(
    job: JobConfig, http_port: int, fetch_timeout_s: float, roster: str = ""
) -> dict[str, Any]:
    return {
        "roster": roster,
        "redis": list(job.redis_address),
        "fl_name": job.name,
        "http_port": http_port,
        "fetch_timeout_s": fetch_timeout_s,
        "tls": as_record(job.tls),
        # Absolute in the file that the engine reads; the scheduler has no results.
        "metrics": job["summary.metrics_file"] if http_port else "",
    }


def note_job(base: Path, job: JobConfig, roster: str | None = None) -> None:
    """Write the job to the folder's record; raise an error if another job still runs there.

    Args:
        roster: for servers, the file of the members, "" for none; None leaves the record's value.
    """
    with update_record(base) as record:
        # A copied folder still has the job of the original folder.
        record.processes = [entry for entry in record.processes if entry.place != COPIED]
        running = record.living()
        if running and record.fl_name not in ("", job.name):
            raise UserError(
                f"job {record.fl_name} runs in {base} ({running[0].label}); finish it first, or "
                f"start {job.name} in another folder"
            )
        record.fl_name = job.name
        record.redis = ":".join(map(str, job.redis_address))
        record.tls = as_record(job.tls)
        record.roster = record.roster if roster is None else roster


def start_all(base: Path, roles: list[Role], timeout_s: float, is_ready: Any) -> list[Started]:
    """Start `roles` and wait for all; when one fails, stop those that this call started."""
    started: list[Started] = []
    try:
        for role in roles:
            start(base, role, started)
        wait_until_ready(started, is_ready, timeout_s, still_waiting(base))
    except BaseException:
        stop_started(base, started)
        raise
    for one in started:
        print(f"started {one.role.label} (pid {one.supervisor.pid}), log {_short(base, one.log)}")
    return started


# What a worker logs while it waits for servers, see `Patience`.
_WAITS_FOR = re.compile(r"\] waiting for (.*), \d+ s, gives up in \d+ s$")


def still_waiting(base: Path) -> Callable[[list[Started]], str]:
    """Return a function that says in words what each role that is not ready waits for."""

    def words(missing: list[Started]) -> str:
        return "waiting for " + ", ".join(_awaited(base, one) for one in missing)

    return words


def _awaited(base: Path, one: Started) -> str:
    """Return a role that is not ready, with its phase or what it waits for."""
    label = one.role.label
    waits = [_WAITS_FOR.search(line) for line in last_lines(one.log)[-1:]]
    if waits and waits[0]:
        return f"{label}, which waits for {waits[0][1]}"
    return f"{label}: {read_status(status_path(base, label)).get('phase', 'starting')}"


def _short(base: Path, path: Path) -> str:
    return os.path.relpath(path, base)


def _server_answers(base: Path, started: Started) -> bool:
    host, port = started.role.address.split(":")
    return listens(host, int(port))


def worker_joined(base: Path, started: Started) -> bool:
    """Return whether the silo's status says that a server has admitted it."""
    return bool(read_status(status_path(base, started.role.label)).get("joined"))


RUNNER = PROJECT_DIR / "src" / "launch" / "rank_runner.py"


def launch_ranks(job: JobConfig, config: Any, base: Path) -> list[Started]:
    """Start this machine's ranks in the folder `base`; return when the silo has joined.

    Args:
        job: the federation's configuration.
        config: keys of default_config.yaml, and the distributed launcher's own flags.
        base: parent folder of the silo's folder and of the record of what runs.

    Returns:
        The one process that runs the ranks.
    """
    ranks = local_ranks(config)
    require(rank_checks(job, base, config))
    take_threshold(base, job, config)
    note_job(base, job)
    threads = threads_each(config.threads, len(ranks))
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
    started = start_all(base, [role], config.start_timeout, lambda one: worker_joined(base, one))
    here = f"rank(s) {ranks[0]} to {ranks[-1]} of {config.device_num}"
    print(f"worker_{config.first_worker_id}, {here}, has joined {job.name}")
    if 0 in ranks:
        tell_missing_silos(base, job, config)
    print(f'next: cd {RANKS}/log_output && grep -rn "epoch" *   follows the training')
    print("      finish_cross_silo_fasterrcnn.py   stops it; it ends by itself when it is done")
    return started


def _started_by(config: Any, folder: Path, ranks: range, command: list[str]) -> list[str]:
    """Return the command that starts all ranks of this machine.

    The mpirun command is untested: the engine's wheel for GPU and Ascend needs its own machine.
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
