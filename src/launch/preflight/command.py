"""Run all checks of one role, or of all roles to run on one machine, and give the verdicts."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Callable

from src.errors import UserError
from src.federated.aggregation import aggregation_of
from src.job.checks import FAIL, PASS, WARN, Check, Finding, run_checks
from src.job.job_config import JobConfig
from src.launch.command_line import (
    add_local_worker_flags,
    add_scheduler_flags,
    add_server_flags,
    add_worker_flags,
    job_from,
    launcher_parser,
)
from src.launch.preflight.cost import StepCost, job_time, remember, remembered
from src.launch.preflight.machine import (
    PROCESS_BYTES,
    machine_checks,
    memory,
    server_bytes,
    worker_bytes,
)
from src.launch.preflight.network import line_seconds
from src.launch.preflight.roles import (
    scheduler_checks,
    server_checks,
    worker_checks,
    worker_numbers,
)
from src.model_utils.config import Config, find_config_file, get_config

ROLES = ("scheduler", "server", "worker")


def preflight_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the flags of all launchers together."""
    parser = launcher_parser(description)
    parser.add_argument("--role", choices=(*ROLES, "all"), default="all", help="(default all)")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of lines")
    parser.add_argument(
        "--measure_step",
        action="store_true",
        help="train some steps on drawn images to estimate the time of the job (about a minute)",
    )
    for add in (add_scheduler_flags, add_server_flags, add_local_worker_flags, add_worker_flags):
        add(parser)
    return parser


Measure = Callable[[Config], StepCost]


def preflight(description: str, argv: list[str], measure: Measure) -> Iterator[Finding]:
    """Yield every finding as soon as it is made.

    Args:
        description: text of the command's --help.
        argv: its words.
        measure: trains some steps with --measure_step.
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
    for finding in run_checks(checks_of(config.role, job, config, measure)):
        if finding not in said:
            yield finding
        said.add(finding)


def checks_of(role: str, job: JobConfig, config: Config, measure: Measure) -> list[Check]:
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
    if role in ("worker", "all"):
        look = lambda: _time_of_job(job, base, config, measure)  # noqa: E731
        checks.append(Check("time", look, after="mindrecord"))
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


def _time_of_job(job: JobConfig, base: Path, config: Config, measure: Measure) -> str | Finding:
    """Estimate the job's time, by steps that are trained now or were before."""
    cost = remembered(base, config)
    if config.measure_step:
        needed = config.local_worker_num * worker_bytes(config)
        if isinstance(scarce := memory(f"{config.local_worker_num} worker(s)", needed), Finding):
            return Finding(WARN, "time", f"no step was measured: {scarce.text}")
        cost = replace(measure(config), line_s=line_seconds(job, config))
        remember(base, config, cost)
    if cost is None:
        return "no step was measured: --measure_step trains some, which takes about a minute"
    return job_time(job, config, worker_numbers(config), cost)


def _device_answers(config: Config) -> str:
    # Imported late: MindSpore's import takes seconds.
    from src.model_utils.device_adapter import use_device

    use_device(config.device_target, config.device_id)
    return f"MindSpore has {config.device_target} {config.device_id}"
