"""Start one silo on several devices. So far on one: more are refused with a reason.

  python run_cross_silo_fasterrcnn_worker_distributed.py --device_num=1 \\
         --dataset_path=/path/to/datasets/coco_split/split_100 --http_server_address=127.0.0.1:6668

does what run_cross_silo_fasterrcnn_worker.py does with --local_worker_num=1.
"""

from src.errors import UserError, require_packages, run_command

require_packages()

from src.launch.command_line import add_bool, add_worker_flags, job_from, launcher_parser
from src.launch.launchers import launch_workers
from src.model_utils.config import get_config


def main() -> None:
    """Parse, refuse more than one device, start."""
    parser = launcher_parser(__doc__)
    parser.add_argument("--device_num", type=int, default=2, help="devices of the silo")
    add_bool(parser, "--run_distribute", False, "train on all devices together")
    parser.add_argument("--first_worker_id", type=int, default=0, help="number of the silo")
    add_worker_flags(parser)
    config = get_config(parser=parser)
    if config.device_num != 1:
        raise UserError(
            f"--device_num {config.device_num}: a silo on several devices is not available yet; "
            "give --device_num=1, or start several silos with run_cross_silo_fasterrcnn_worker.py"
        )
    config.local_worker_num = 1
    launch_workers(job_from(config), config)


if __name__ == "__main__":
    run_command(main)
