"""Show the status of a job: processes, iteration, joined and missing silos, losses, time left.

  python tools/status.py                    the job of the current folder
  python tools/status.py --folder=/silo/a   of another one; --all: all jobs of this user
  python tools/status.py --watch            redrawn in place until the job has ended
  python tools/status.py --json             one JSON object (a list with --all)

In a folder that never had a job it shows the user's only one. Whatever does not answer delays it by
a few seconds at most. Exit code: 0 running, 10 finished, 11 failed, 12 nothing there (of several
jobs the lowest of these), 2 bad input; "word" and "exit_code" say the same in the JSON. --watch
ends with 0 when the job has finished, so that a script with `set -e` goes on. A job has failed when
its processes of this folder have ended and one of them failed, also when servers still wait for its
workers. Ctrl-C ends --watch (130) and does not affect the job.

These commands use the management API of the scheduler, which must be running:

  python tools/status.py query              the settings that the servers go by
  python tools/status.py disable            pause: servers refuse silos; the iteration fails by it
  python tools/status.py enable             go on
  python tools/status.py new-instance --yaml_config=federation.yaml --fl_iteration_num=10
                                            from iteration 1 again, with the present model

They end with 0 when done. What would cost silos their training is refused without --force.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.errors import UserError, require_packages, run_command

require_packages("redis", "psutil", "yaml", "numpy")

import redis

from src.job.addresses import parse_address
from src.job.job_record import ended_job, indexed_folders, read_record
from src.launch.command_line import JOB_FLAGS
from src.launch.management import run_management
from src.launch.status import EXIT_CODES, FINISHED_JOB, Collector, as_values
from src.launch.status_view import Screen, lines_of, watch
from src.model_utils.config import parse_known, script_parser
from src.printing import print, print_json

COMMANDS = ("show", "query", "enable", "disable", "new-instance")


def build_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("command", nargs="?", choices=COMMANDS, default="show")
    parser.add_argument("--folder", type=Path, help="where the job was started (default: here)")
    parser.add_argument("--all", action="store_true", help="every job of this user")
    parser.add_argument("--json", action="store_true", help="JSON in place of text")
    parser.add_argument(
        "--watch", action="store_true", help="until the job has ended; 0 when it has finished"
    )
    parser.add_argument(
        "--interval", type=float, metavar="SECONDS", help="of --watch (2; 30 into a file)"
    )
    parser.add_argument(
        "--scheduler_manage_address",
        default="",
        help="ip:port of the scheduler (default: the one that was started from the folder)",
    )
    parser.add_argument("--force", action="store_true", help="also when silos lose training by it")
    group = parser.add_argument_group("new-instance")
    group.add_argument("--yaml_config", help="the federation's file (default: the job's own)")
    for flag, key in JOB_FLAGS.items():
        if flag != "fl_name":
            group.add_argument(f"--{flag}", type=int, help=f"in place of the file's {key}")
    return parser


def folders_of(args: argparse.Namespace) -> list[Path]:
    """Return the folders whose jobs are meant."""
    if args.folder:
        if not args.folder.is_dir():
            raise UserError(f"--folder {args.folder}: no such folder")
        return [args.folder.absolute()]
    jobs = indexed_folders()
    if args.all:
        return jobs
    if read_record(Path.cwd()) or ended_job(Path.cwd()) or not jobs:
        return [Path.cwd()]
    if len(jobs) > 1:
        listed = ", ".join(map(str, jobs))
        raise UserError(f"no job was started from here, and several elsewhere ({listed}): give "
                        "--folder, or --all")  # fmt: skip
    return jobs


def show(args: argparse.Namespace, folders: list[Path]) -> int:
    """Show the jobs of `folders`; return the exit code."""
    collectors = [Collector(folder, args.scheduler_manage_address) for folder in folders]
    if args.watch:
        if len(collectors) != 1 or args.json:
            raise UserError("--watch shows one job as text: give --folder, without --all or --json")
        screen = Screen()
        interval = args.interval or (2.0 if sys.stdout.isatty() else 30.0)
        word = watch(collectors[0].collect, interval, screen).word
        return 0 if word == FINISHED_JOB else EXIT_CODES[word]
    found = [collector.collect() for collector in collectors]
    if args.json:
        values = [as_values(status) for status in found]
        print_json(values if args.all else values[0])
    for number, status in enumerate([] if args.json else found):
        print(*([""] if number else []), *lines_of(status), sep="\n")
    if not found and not args.json:
        print("nothing: no job")
    return min((EXIT_CODES[status.word] for status in found), default=EXIT_CODES["nothing"])


def main() -> int:
    """Parse the command line, then show or manage."""
    args = parse_known(build_parser())
    # End silently when the reader of a pipe does, as in: status.py --json | head
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if args.interval is not None and args.interval <= 0:
        raise UserError(f"--interval is {args.interval}, expected more than 0 seconds")
    if args.scheduler_manage_address:
        parse_address(args.scheduler_manage_address, "--scheduler_manage_address")
    folders = folders_of(args)
    if args.command == "show":
        return show(args, folders)
    if len(folders) != 1:
        raise UserError(f"{args.command} is for one job: give --folder")
    try:
        lines = run_management(args.command, folders[0], args)
    except redis.RedisError as error:
        raise UserError(f"Redis of the job failed: {error}; is it up?") from error
    if args.json:
        print_json(lines)
    else:
        print(*lines, sep="\n")
    return 0


if __name__ == "__main__":
    run_command(main)
