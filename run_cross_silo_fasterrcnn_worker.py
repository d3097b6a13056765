"""Start this machine's silos: each trains Faster R-CNN on its own shard and shares the weights.

  python run_cross_silo_fasterrcnn_worker.py --local_worker_num=2 \\
         --yaml_config="default_yaml_config.yaml" --pre_trained="/path/to/pre_trained.ckpt" \\
         --dataset_path=/path/to/datasets/coco_split/split_100 --http_server_address=127.0.0.1:6668

It starts worker_0 on mindrecord_0 and worker_1 on mindrecord_1, and returns when both have joined
the federation. Then  grep -rn "\\]epoch:" worker_0  finds lines like

  [2026-11-22 08:00:00][worker_0]epoch: 1 step: 1 total_loss: 5.249325

On a second machine --first_worker_id=2 continues with mindrecord_2 and worker_2. Every scalar key
of default_config.yaml is a flag too. The workers end by themselves after the last iteration.
On ModelArts (--enable_modelarts=True --data_url=... --train_url=...) it fetches the data, returns
when the training has ended, and sends the results.
"""

from src.errors import require_packages, run_command

require_packages()

from src.launch.command_line import (
    add_local_worker_flags,
    add_worker_flags,
    job_from,
    launcher_parser,
)
from src.launch.foreground import launch_and_send
from src.launch.launchers import launch_workers
from src.model_utils.config import get_config


def main() -> int:
    """Parse the command line, check and start."""
    parser = launcher_parser(__doc__)
    add_local_worker_flags(parser)
    add_worker_flags(parser)
    config = get_config(parser=parser)
    return launch_and_send(launch_workers, job_from(config), config)


if __name__ == "__main__":
    run_command(main)
