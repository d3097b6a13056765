"""Start one silo on several devices or machines: its ranks train together and count as one silo.

  python run_cross_silo_fasterrcnn_worker_distributed.py --device_num=4 --run_distribute=True \\
         --dataset_path=/path/to/datasets/coco_split/split_100 --http_server_address=127.0.0.1:6668

It starts the ranks 0 to 3 on mindrecord_0 (--first_worker_id: another shard) and returns when the
silo has joined the federation. Each rank trains on a quarter of the images, all use the mean of
their gradients, and rank 0 talks to the servers. Then

  cd worker_distributed/log_output && grep -rn "epoch" *

finds the lines of each rank in 1/rank.0/stdout, 1/rank.1/stdout, ...; the output of the silo as a
whole is in worker_distributed/worker.log. On CPUs ranks are processes; for GPU and Ascend mpirun
starts them (untested so far).

Several machines: run the same command on each, with --rank_host=<address of the first machine>, and
--first_rank and --local_rank_num for the ranks that start there. Silos that each train alone are
started with run_cross_silo_fasterrcnn_worker.py.
"""

from src.errors import require_packages, run_command

require_packages()

from src.launch.command_line import add_foreground, add_worker_flags, job_from, launcher_parser
from src.launch.foreground import launch_and_send
from src.launch.launchers import launch_ranks, launch_workers
from src.launch.rank_flags import add_local_rank_flags, add_rank_flags
from src.model_utils.config import get_config


def main() -> int:
    """Parse the command line, check and start."""
    parser = launcher_parser(__doc__)
    add_rank_flags(parser, device_num=2)
    add_local_rank_flags(parser)
    add_worker_flags(parser)
    add_foreground(parser)
    config = get_config(parser=parser)
    if config.device_num == 1 and not config.run_distribute:
        config.local_worker_num = 1
        return launch_and_send(launch_workers, job_from(config), config)
    return launch_and_send(launch_ranks, job_from(config), config)


if __name__ == "__main__":
    run_command(main)
