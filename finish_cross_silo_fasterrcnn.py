"""Stop the job that was started from this folder, and only that.

  python finish_cross_silo_fasterrcnn.py --redis_port=2345

It ends the workers, servers and scheduler that the launchers recorded in .federation/job.json,
removes the job's keys from its Redis, and stops the Redis on --redis_port if it then holds nothing
and serves nobody else. --all does so for every job of this user on this machine; under an account
that several people use, it includes the other people's jobs.When called again, it says that there
is nothing to stop, or stops the Redis that a call with another --redis_port has left. Logs and
checkpoints stay. Processes that another machine or container started in a shared folder are named
and left alone: call finish there too.
"""

from pathlib import Path

from src.errors import require_packages, run_command

require_packages()

from src.job.job_record import indexed_folders
from src.launch.finish import finish
from src.model_utils.config import parse_known, script_parser
from src.printing import print


def main() -> int:
    """Parse the command line, then finish each folder's job."""
    parser = script_parser(__doc__)
    parser.add_argument(
        "--redis_port", type=int, default=2345, help="port of the Redis to stop (default 2345)"
    )
    parser.add_argument("--all", action="store_true", help="every job of this user on this machine")
    args = parse_known(parser)
    folders = indexed_folders() if args.all else [Path.cwd()]
    if not folders:
        print("nothing to stop: no job of this user is recorded on this machine")
    return max([finish(folder, args.redis_port) for folder in folders], default=0)


if __name__ == "__main__":
    run_command(main)
