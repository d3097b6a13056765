"""Run all checks of one role, or of all roles to run on one machine, and give the verdicts."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from src.errors import UserError
from src.federated.aggregation import aggregation_of
from src.job.checks import FAIL, PASS, Check, Finding, run_checks
from src.job.job_config import JobConfig
from src.launch.command_line import (
    add_local_worker_flags,
    add_scheduler_flags,
    add_server_flags,
    add_worker_flags,
    job_from,
    launcher_parser,
)
from src.launch.preflight.machine import (
    PROCESS_BYTES,
    machine_checks,
    memory,
    server_bytes,
    worker_bytes,
)
from src.launch.preflight.roles import scheduler_checks, server_checks, worker_checks
from src.model_utils.config import Config, find_config_file, get_config

ROLES = ("scheduler", "server", "worker")


def preflight_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the flags of all launchers together."""
    parser = launcher_parser(description)
    parser.add_argument("--role", choices=(*ROLES, "all"), default="all", help="(default all)")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of lines")
    for add in (add_scheduler_flags, add_server_flags, add_local_worker_flags, add_worker_flags):
        add(parser)
    return parser


def preflight(description: str, argv: list[str]) -> Iterator[Finding]:
    """Yield every finding as soon as it is made.

    Args:
        description: text of the command's --help.
        argv: its words.
    """
    config, fault = _config(description, argv)
    if config is None:
        yield from run_checks(machine_checks())
        yield fault
        return
    try:
        job = job_from(config)
    except UserError as error:
        yield from run_checks(machine_checks())
        yield Finding(FAIL, "yaml_config", str(error))
        return
    yield Finding(PASS, "yaml_config", _about_job(job))
    yield Finding(PASS, "config_path", _about_config(config))
    said = set()
    for finding in run_checks(checks_of(config.role, job, config)):
        if finding not in said:
            yield finding
        said.add(finding)


def checks_of(role: str, job: JobConfig, config: Config) -> list[Check]:
    """Return the launcher's checks for `role`; for "all", those of everything on this machine."""
    base = Path.cwd()
    by_role = {
        "scheduler": lambda: scheduler_checks(job, base, config.scheduler_manage_address),
        "server": lambda: server_checks(job, base, config),
        "worker": lambda: worker_checks(job, base, config),
    }
    checks = [check for name in ROLES if role in (name, "all") for check in by_role[name]()]
    if config.device_target != "CPU" and role in ("worker", "all"):
        checks.append(Check("mindspore", lambda: _device_answers(config)))
    if role != "all":
        return checks
    # Servers are yet to be started, and what counts is the memory of all processes together.
    checks = [check for check in checks if check.subject not in ("servers", "memory")]
    return [*checks, Check("memory", lambda: _memory_of_all(job, config), after="aggregation")]


def _config(description: str, argv: list[str]) -> tuple[Config | None, Finding]:
    try:
        config = get_config(argv, preflight_parser(description))
        return config, Finding(PASS, "config_path", "")
    except UserError as error:
        return None, Finding(FAIL, "configuration", str(error))


def _about_job(job: JobConfig) -> str:
    return (
        f"{job.path}: {job.name}, {job.iterations} iterations of "
        f"{job['round.start_fl_job_threshold']} silos"
    )


def _about_config(config: Config) -> str:
    size = f"{config.img_width}x{config.img_height}"
    return (
        f"{find_config_file(config.config_path)}: {config.num_classes - 1} categories, images of "
        f"{size}, batch {config.batch_size}"
    )


def _memory_of_all(job: JobConfig, config: Config) -> str | Finding:
    servers, workers = config.local_server_num, config.local_worker_num
    algorithm = aggregation_of(job, config)
    needed = PROCESS_BYTES + servers * server_bytes(config, algorithm.server_models)
    needed += workers * worker_bytes(config, algorithm.silo_models)
    return memory(f"a scheduler, {servers} server(s) and {workers} worker(s)", needed)


def _device_answers(config: Config) -> str:
    # Imported late: MindSpore's import takes seconds.
    from src.model_utils.device_adapter import use_device

    use_device(config.device_target, config.device_id)
    return f"MindSpore has {config.device_target} {config.device_id}"
