"""Define the flags that the launchers have in common."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from src.errors import user_path
from src.job.job_config import JobConfig, load_job
from src.model_utils.config import (
    ALIASES,
    DEFAULT_CONFIG,
    KEYS,
    add_key_flags,
    parse_bool,
    script_parser,
)
from src.security.passwords import CLIENT, FLAG, SERVER

DEFAULT_JOB = "default_yaml_config.yaml"

LOG_KEYS = ("log_max_mb", "log_files_kept")

# Flags that override a key of the federation's YAML file.
JOB_FLAGS = {
    "fl_name": "fl_name",
    "fl_iteration_num": "fl_iteration_num",
    "start_fl_job_threshold": "round.start_fl_job_threshold",
}


def launcher_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the flags of every launcher; its help is the script's docstring."""
    parser = script_parser(description)
    parser.add_argument(
        "--yaml_config",
        default=DEFAULT_JOB,
        help="the federation's YAML file; looked up here, then next to the scripts",
    )
    parser.add_argument(
        "--config_path",
        default=DEFAULT_CONFIG,
        help="YAML file of detector, data and training; looked up likewise",
    )
    parser.add_argument("--fl_name", help="name of the job, in place of the YAML file's")
    parser.add_argument("--fl_iteration_num", type=int, help="iterations, in place of the file's")
    parser.add_argument(
        "--start_fl_job_threshold", type=int, help="silos of an iteration, in place of the file's"
    )
    parser.add_argument(
        "--start_timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="give up when what was started is not ready by then (default 300)",
    )
    parser.add_argument(
        FLAG,
        default="",
        metavar="FILE",
        help=f"with enable_ssl: file of mode 0600 with lines {SERVER}=... and {CLIENT}=... "
        "(default: these variables of the environment)",
    )
    return parser


def add_foreground(parser: argparse.ArgumentParser) -> None:
    """Add the flag of a launcher that stays; a command for several roles adds it once."""
    if "--foreground" not in parser._option_string_actions:
        text = "stay, print the logs, and end with what was started (for containers, systemd)"
        add_bool(parser, "--foreground", False, text)


def add_bool(parser: argparse.ArgumentParser, flag: str, default: bool, text: str) -> None:
    """Add a flag that takes True or False, and is True when no value follows it."""
    parser.add_argument(flag, type=parse_bool, nargs="?", const=True, default=default, help=text)


def job_from(args: Any) -> JobConfig:
    """Return the federation's configuration, overridden by the flags of `launcher_parser`."""
    overrides = {key: getattr(args, flag, None) for flag, key in JOB_FLAGS.items()}
    job = load_job(args.yaml_config, overrides)
    if not args.ssl_passwords:
        return job
    return replace(job, ssl_passwords=str(user_path(args.ssl_passwords).absolute()))


def add_scheduler_flags(parser: argparse.ArgumentParser) -> None:
    """Add the scheduler launcher's own flags."""
    add_foreground(parser)
    parser.add_argument(
        "--scheduler_manage_address",
        default="127.0.0.1:18019",
        help="ip:port of the management API (default 127.0.0.1:18019)",
    )


def add_log_flags(parser: argparse.ArgumentParser) -> None:
    """Add the keys of default_config.yaml that a scheduler reads too."""
    add_key_flags(parser, LOG_KEYS)


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Add the server launcher's own flags."""
    add_foreground(parser)
    _add_address(parser, "ip:port of the first server; the others take the next ports")
    parser.add_argument(
        "--tcp_server_ip",
        default="127.0.0.1",
        help="address for traffic between servers (default %(default)s)",
    )
    parser.add_argument(
        "--local_server_num",
        type=int,
        default=4,
        help="servers to start here; one is enough for a few silos (default %(default)s)",
    )
    parser.add_argument(
        "--checkpoint_dir",
        default="./fl_ckpt",
        help="folder of the servers' checkpoints (default %(default)s)",
    )
    parser.add_argument(
        "--fetch_timeout",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="after the last iteration, wait this long for silos to fetch its model (default 120)",
    )
    _add_resume(parser)


def add_local_worker_flags(parser: argparse.ArgumentParser) -> None:
    """Add the worker launcher's own flags: how many workers, and the number of the first one."""
    add_foreground(parser)
    parser.add_argument(
        "--local_worker_num",
        type=int,
        default=2,
        help="silos on this machine (default %(default)s)",
    )
    parser.add_argument(
        "--first_worker_id", type=int, default=0, help="number of the first one (default 0)"
    )


def _add_address(parser: argparse.ArgumentParser, text: str) -> None:
    """Add the address where servers listen and workers connect; a command for both adds it once."""
    if "--http_server_address" not in parser._option_string_actions:
        text = f"{text} (default %(default)s)"
        parser.add_argument("--http_server_address", default="127.0.0.1:6668", help=text)


def _add_resume(parser: argparse.ArgumentParser) -> None:
    """Add --resume, which servers and workers share; a command for both adds it once."""
    if "--resume" not in parser._option_string_actions:
        text = "go on where what was started from this folder was, see docs/recovery.md"
        add_bool(parser, "--resume", False, text)


def add_worker_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that the worker launcher takes and passes to each worker."""
    parser.add_argument(
        "--dataset_path",
        default="",
        help="folder of mindrecord_0, mindrecord_1, ... (default: the one around mindrecord_dir)",
    )
    _add_address(
        parser, "server to talk to, or several with commas; worker i takes the i-th, in turn"
    )
    parser.add_argument(
        "--server_num",
        type=int,
        default=1,
        help="servers on consecutive ports from a single --http_server_address (default 1)",
    )
    parser.add_argument(
        "--silo_name",
        default="",
        help="name of this organisation; with the worker's number it is the silo's identity "
        "(default: the name of its certificate in --roster, without one the machine's name)",
    )
    parser.add_argument(
        "--join_timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="how long to wait for a server, and to be let into an iteration (default 600)",
    )
    parser.add_argument(
        "--request_timeout",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="seconds without a byte in either direction after which a request to a server is "
        "given up; a slow line needs no more as long as bytes move (default 120)",
    )
    parser.add_argument(
        "--wait_timeout",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="how long to wait for the other silos of an iteration; the servers decide within "
        "round.global_iteration_time_window (default 0: that and 600 more)",
    )
    _add_resume(parser)
    for alias, key in ALIASES.items():
        kind = type(KEYS[key].default)
        text = f"upstream's name for --{key}; upstream's scripts ignored it"
        parser.add_argument(f"--{alias}", type=kind, default=argparse.SUPPRESS, help=text)


WORKER_FLAGS = (
    "http_server_address",
    "server_num",
    "silo_name",
    "join_timeout",
    "request_timeout",
    "wait_timeout",
    "resume",
)
