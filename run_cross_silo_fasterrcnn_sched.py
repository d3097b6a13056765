"""Start the scheduler of a federation: the REST view of a job (/state, /queryInstance, ...).

Redis comes first, then one scheduler for the whole job:

  redis-server --port 2345 --save ""
  python run_cross_silo_fasterrcnn_sched.py --yaml_config="default_yaml_config.yaml" \\
         --scheduler_manage_address="127.0.0.1:18019"

It returns when the scheduler listens; scheduler/scheduler.log then ends with "Scheduler started
successfully." Start the servers next. Training does not depend on the scheduler.
"""

from src.errors import require_packages, run_command

require_packages()

from src.job.log_files import rotation
from src.launch.command_line import (
    LOG_KEYS,
    add_log_flags,
    add_scheduler_flags,
    job_from,
    launcher_parser,
)
from src.launch.foreground import launch_and_stay
from src.launch.launchers import launch_scheduler
from src.model_utils.config import load_config, parse_known


def main() -> int:
    """Parse the command line, check and start."""
    parser = launcher_parser(__doc__)
    add_scheduler_flags(parser)
    add_log_flags(parser)
    args = parse_known(parser)
    given = {key: value for key, value in vars(args).items() if key in LOG_KEYS}
    limits = rotation(load_config(args.config_path, **given))
    job, address = job_from(args), args.scheduler_manage_address
    return launch_and_stay(
        args.foreground,
        lambda: launch_scheduler(job, address, args.start_timeout, limits, args.config_path),
    )


if __name__ == "__main__":
    run_command(main)
